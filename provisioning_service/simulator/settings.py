"""Settings of the simulator: its address and its credentials."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.settings import ENV_PREFIX, FileSettings, HostNames


class SimulatorSettings(FileSettings):
    """Settings of the simulator, which has no database and no broker."""

    # An empty variable counts as not set: Compose passes unset variables on as empty ones.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    http_names: HostNames = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    smartvps_username: str = "simulator"
    smartvps_password: SecretStr = SecretStr("simulator")
