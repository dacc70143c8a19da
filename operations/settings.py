"""The settings of the operations process, and the location of the stack that a command acts on.

Commands use the URLs in the environment, else the data directory used last.
"""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from operations.errors import UnreachableError
from operations.stack.access import key_of_commands
from operations.stack.database_rights import BACKUP, MAINTENANCE
from operations.stack.database_users import DatabaseUsers, read_users
from operations.stack.environment import invalid_value, topology_options, with_values_for_commands
from operations.stack.layout import (
    AMQP_URL_VARIABLE,
    API_KEY_VARIABLE,
    DATABASE_PREFIX_VARIABLE,
    EVENTS_RETENTION_VARIABLE,
    MONGODB_URL_VARIABLE,
    PARTITIONS_VARIABLE,
    REMOTE_URL_VARIABLE,
    WEBHOOKS_VARIABLE,
    Layout,
    choose_data_directory,
)
from operations.stack.state import State, UnreadableStateError, read_state
from shared.errors import StartError
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROCESSES, PROVISIONING, SERVICES
from shared.settings import Amount, HostNames, ServiceSettings, words
from shared.tls import client_context
from shared.topology import DEFAULT_OPTIONS, TopologyOptions
from shared.urls import check_api_url, check_service_url, hide_credentials, hide_credentials_in_value, is_unalterable

HttpUrl = Annotated[str, AfterValidator(check_service_url)]
OptionalUrl = Annotated[str, AfterValidator(lambda url: check_service_url(url).rstrip("/") if url else url)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")]


SHORTEST_AUDIT_INTERVAL = 60
"""The shortest time between two scheduled audits, in seconds."""

ApprovalAction = Literal["dead-letters.replay", "dead-letters.discard", "accounts.repair"]
"""The acts that can be made to need a second person, besides those on orders from an amount on."""


def is_signing_secret(secret: str) -> bool:
    """Return whether it is a secret of Standard Webhooks."""
    try:
        return secret.startswith("whsec_") and 24 <= len(base64.b64decode(secret[6:], validate=True)) <= 64
    except ValueError:
        return False


def _not_too_often(seconds: int) -> int:
    """Check the time between two audits."""
    if 0 < seconds < SHORTEST_AUDIT_INTERVAL:
        raise ValueError(f"allowed are 0, which means never, and {SHORTEST_AUDIT_INTERVAL} or more")
    return seconds


class OperationsSettings(ServiceSettings):
    """The addresses of the services, the key for them, and how people reach the console and sign in."""

    order_url: HttpUrl = ORDER.default_url
    inventory_url: HttpUrl = INVENTORY.default_url
    payment_url: HttpUrl = PAYMENT.default_url
    provisioning_url: HttpUrl = PROVISIONING.default_url
    notification_url: HttpUrl = NOTIFICATION.default_url
    console_hosts: HostNames = ()
    api_key: SecretStr | None = None
    console_public_url: OptionalUrl = ""
    oidc_client_id: Annotated[str, Field(max_length=500)] = ""
    oidc_client_secret: SecretStr | None = None
    oidc_scopes: Annotated[str, Field(pattern=r"^openid( [\x21-\x7e]+)*$", max_length=500)] = "openid profile email"
    session_idle_seconds: Annotated[int, Field(ge=60, le=24 * 3600)] = 30 * 60
    session_seconds: Annotated[int, Field(ge=60, le=7 * 24 * 3600)] = 8 * 3600
    approval_amount: Amount = None
    approval_actions: Annotated[tuple[ApprovalAction, ...], NoDecode, BeforeValidator(words)] = ()
    audit_interval_seconds: Annotated[int, Field(ge=0, le=7 * 24 * 3600), AfterValidator(_not_too_often)] = 3600
    notify_webhook_url: SecretStr | None = None
    notify_webhook_secret: SecretStr | None = None
    notify_slack_url: SecretStr | None = None
    notify_allow_private: bool = False
    smtp_host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{0,253}$")] = ""
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = 587
    smtp_security: Literal["starttls", "tls", "off"] = "starttls"
    smtp_username: Annotated[str, Field(max_length=500)] = ""
    smtp_password: SecretStr | None = None
    smtp_from: Annotated[str, Field(pattern=r"^([^\s@<>,;]{1,64}@[A-Za-z0-9.-]{1,253})?$")] = ""
    operator_header: HeaderName = ""
    operator_roles_header: HeaderName = ""

    @model_validator(mode="after")
    def _sign_in_is_complete(self) -> Self:
        if self.oidc_client_id and not self.oidc_issuer:
            raise ValueError("with ORDERSAGA_OIDC_CLIENT_ID, ORDERSAGA_OIDC_ISSUER must be set too")
        if self.oidc_client_secret is not None and not self.oidc_client_id:
            raise ValueError("with ORDERSAGA_OIDC_CLIENT_SECRET, ORDERSAGA_OIDC_CLIENT_ID must be set too")
        return self

    @model_validator(mode="after")
    def _destinations_are_complete(self) -> Self:
        if bool(self.notify_webhook_url) != bool(self.notify_webhook_secret):
            raise ValueError(
                "ORDERSAGA_NOTIFY_WEBHOOK_URL and ORDERSAGA_NOTIFY_WEBHOOK_SECRET must be set together: messages are "
                "signed with the secret"
            )
        if bool(self.smtp_host) != bool(self.smtp_from):
            raise ValueError("ORDERSAGA_SMTP_HOST and ORDERSAGA_SMTP_FROM must be set together")
        if bool(self.smtp_username) != bool(self.smtp_password):
            raise ValueError("ORDERSAGA_SMTP_USERNAME and ORDERSAGA_SMTP_PASSWORD must be set together")
        if self.smtp_password and self.smtp_security == "off":
            raise ValueError("with ORDERSAGA_SMTP_SECURITY=off, no password may be set: anybody could read it")
        self._check_destination("NOTIFY_WEBHOOK_URL", self.notify_webhook_url)
        self._check_destination("NOTIFY_SLACK_URL", self.notify_slack_url)
        if self.notify_webhook_secret and not is_signing_secret(self.notify_webhook_secret.get_secret_value()):
            raise ValueError("ORDERSAGA_NOTIFY_WEBHOOK_SECRET must be whsec_ and 24 to 64 bytes in base64")
        return self

    def _check_destination(self, name: str, url: SecretStr | None) -> None:
        """Raise ValueError, without the URL, which is a secret."""
        if not url:
            return
        try:
            parts = urlsplit(url.get_secret_value())
            usable = bool(parts.hostname) and parts.scheme in ("https", "http")
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"ORDERSAGA_{name} must be a URL, such as https://hooks.example.org/…")
        if parts.scheme != "https" and not self.notify_allow_private:
            raise ValueError(f"ORDERSAGA_{name} must begin with https://, unless ORDERSAGA_NOTIFY_ALLOW_PRIVATE is set")

    @model_validator(mode="after")
    def _identity_proxy_is_complete(self) -> Self:
        if self.operator_header and not self.trusted_proxies:
            raise ValueError(
                f"ORDERSAGA_OPERATOR_HEADER={self.operator_header} is believed only from ORDERSAGA_TRUSTED_PROXIES, "
                "which must be set too: the addresses of the proxy that sets the header"
            )
        if bool(self.operator_header) != bool(self.operator_roles_header):
            raise ValueError("ORDERSAGA_OPERATOR_HEADER and ORDERSAGA_OPERATOR_ROLES_HEADER must be set together")
        return self

    @property
    def known_names(self) -> tuple[str, ...]:
        """The host names of all services and those of the console alone."""
        return (*self.http_names, *self.console_hosts)

    @property
    def service_urls(self) -> dict[str, str]:
        """The URL of each service, by name."""
        others = (name for name in SERVICES if name != CONSOLE.name)
        return {name: str(getattr(self, f"{name}_url")).rstrip("/") for name in others}


@dataclass(frozen=True)
class Stack:
    """The location of a stack: the URLs of its servers and services, and the prefix of its databases.

    `data_dir` is the data directory of both servers, None if one of them is external.
    """

    mongodb_url: str = field(repr=False)
    amqp_url: str = field(repr=False)
    urls: dict[str, str]
    data_dir: Path | None
    database_prefix: str
    api_key: str | None = field(default=None, repr=False)
    """The key with which commands call the services; None if they answer without one, or none is known."""
    maintenance_url: str = field(default="", repr=False)
    """The URL of MongoDB for commands that change the records of services; empty if `mongodb_url` is for all."""
    backup_url: str = field(default="", repr=False)
    """The URL of MongoDB for backups, which only read; empty if `mongodb_url` is for all."""
    database_users: DatabaseUsers | None = None
    """The users of MongoDB if `ordersaga up` runs it."""
    topology_options: TopologyOptions = DEFAULT_OPTIONS
    """What its settings decide about the topology of its broker."""

    @property
    def url_for_changes(self) -> str:
        """The URL of MongoDB with which the records of all services can be changed."""
        return self.maintenance_url or self.mongodb_url

    @property
    def url_for_backups(self) -> str:
        """The URL of MongoDB with which everything that a backup has can be read, and nothing changed."""
        return self.backup_url or self.mongodb_url

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request to a service."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def describe(self) -> str:
        """Return the location in one line, without passwords."""
        servers = f"{hide_credentials(self.mongodb_url)} and {hide_credentials(self.amqp_url)}"
        return f"{self.data_dir or servers} (databases {self.database_prefix}_*)"

    def as_json(self) -> dict[str, str | None]:
        """Return the location as JSON, without passwords."""
        return {
            "dataDirectory": str(self.data_dir) if self.data_dir else None,
            "mongodbUrl": hide_credentials(self.mongodb_url),
            "amqpUrl": hide_credentials(self.amqp_url),
            "databasePrefix": self.database_prefix,
        }


@dataclass(frozen=True)
class RemoteStack:
    """A stack that commands reach through the operations API of its console alone, and the key for it."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def urls(self) -> dict[str, str]:
        """The URL of the console: no other service can be reached."""
        return {CONSOLE.name: self.url}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def describe(self) -> str:
        """Return the location in one line, without passwords."""
        return hide_credentials(self.url)

    def as_json(self) -> dict[str, str | None]:
        """Return the location as JSON, without passwords."""
        return {"url": self.describe()}


def remote_stack(environment: Mapping[str, str] = os.environ) -> RemoteStack | None:
    """Return the stack whose console ORDERSAGA_URL names, None if it is not set.

    Raises UnreachableError for an invalid URL, or a file of a key or of certificates that cannot be used.
    """
    url = environment.get(REMOTE_URL_VARIABLE)
    if not url:
        return None
    try:
        environment = with_values_for_commands(environment)
        client_context(environment)
        _check_remote_url(url)
    except StartError as error:
        raise UnreachableError(str(error)) from None
    except ValueError as error:
        shown = hide_credentials_in_value(url)
        raise UnreachableError(f"{REMOTE_URL_VARIABLE}={shown!r} is not valid: {error}") from None
    return RemoteStack(url.rstrip("/").removesuffix("/api/v1"), environment.get(API_KEY_VARIABLE) or None)


def _check_remote_url(url: str) -> None:
    """Raise ValueError unless it is the URL of an API to which a key can be sent."""
    check_api_url(url)
    if not is_unalterable(url):
        raise ValueError(
            "it must begin with https://, except for this machine (127.0.0.1 or localhost): the key is sent with each "
            "request, and anybody on the way could read it"
        )


def _refuse_remote(environment: Mapping[str, str]) -> None:
    """Raise UnreachableError if ORDERSAGA_URL names a stack, whose servers are out of reach."""
    if environment.get(REMOTE_URL_VARIABLE):
        raise UnreachableError(
            f"{REMOTE_URL_VARIABLE} is set, and this needs the servers themselves: unset it to act on another stack"
        )


def locate_stack(data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> Stack:
    """Locate the stack that a command acts on.

    ORDERSAGA_MONGODB_URL and ORDERSAGA_AMQP_URL name its servers, ORDERSAGA_ORDER_URL and so on its services. Missing
    URLs come from the stack that runs in the data directory: the given one, else ORDERSAGA_DATA_DIR, else the one used
    last. Services that it does not run are assumed at their default ports.
    Raises UnreachableError if the URL of a server is unknown, or if a variable or the file that it names has an invalid
    value.
    """
    _refuse_remote(environment)
    try:
        environment = with_values_for_commands(environment)
        client_context(environment)
    except StartError as error:
        raise UnreachableError(str(error)) from None
    if invalid := invalid_value(environment):
        raise UnreachableError(invalid)
    layout = Layout(choose_data_directory(data_dir, environment, last_used=True))
    running = _running(layout, environment)
    mongodb_url = environment.get(MONGODB_URL_VARIABLE) or running.mongodb_url
    amqp_url = environment.get(AMQP_URL_VARIABLE) or running.amqp_url
    if not mongodb_url or not amqp_url:
        raise UnreachableError(
            f"no stack runs in {layout.root}: start one (`ordersaga up --detach`), set ORDERSAGA_DATA_DIR to its data "
            f"directory, or set {MONGODB_URL_VARIABLE} and {AMQP_URL_VARIABLE}"
        )
    stack = Stack(
        mongodb_url,
        amqp_url,
        _service_urls(running, environment),
        layout.root if (mongodb_url, amqp_url) == (running.mongodb_url, running.amqp_url) else None,
        environment.get(DATABASE_PREFIX_VARIABLE) or running.database_prefix,
        api_key=key_of_commands(layout, environment),
        topology_options=_topology_options(amqp_url, running, environment),
    )
    if running.mongodb_has_users and not environment.get(MONGODB_URL_VARIABLE):
        return _with_users(stack, layout, running.database_prefix)
    return stack


def _with_users(stack: Stack, layout: Layout, prefix: str) -> Stack:
    """Return the stack with the URLs of the users that commands have on its MongoDB. Raises UnreachableError."""
    try:
        users = read_users(layout.secrets, prefix)
    except OSError as error:
        raise UnreachableError(f"the password of a user of MongoDB cannot be read: {error}") from error
    return replace(
        stack,
        mongodb_url=users.url(CONSOLE.user, stack.mongodb_url),
        maintenance_url=users.url(MAINTENANCE, stack.mongodb_url),
        # A stack of an earlier release has no such user until this one has started it.
        backup_url=users.url(BACKUP, stack.mongodb_url) if BACKUP in users.passwords else "",
        database_users=users,
    )


@dataclass(frozen=True)
class Broker:
    """The broker that a command acts on, and what settings decide about its topology."""

    url: str = field(repr=False)
    topology_options: TopologyOptions


def locate_broker(data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> Broker:
    """Return the broker that a command acts on: ORDERSAGA_AMQP_URL, else that of the stack that runs.

    The data directory is chosen as in `locate_stack`. Raises UnreachableError if there is none, or if a variable has an
    invalid value.
    """
    _refuse_remote(environment)
    try:
        environment = with_values_for_commands(environment)
    except StartError as error:
        raise UnreachableError(str(error)) from None
    own = (AMQP_URL_VARIABLE, EVENTS_RETENTION_VARIABLE, PARTITIONS_VARIABLE, WEBHOOKS_VARIABLE)
    if invalid := invalid_value({name: environment.get(name, "") for name in own}):
        raise UnreachableError(invalid)
    if given := environment.get(AMQP_URL_VARIABLE):
        return Broker(given, topology_options(environment))
    layout = Layout(choose_data_directory(data_dir, environment, last_used=True))
    running = _running(layout, environment)
    if url := running.amqp_url:
        return Broker(url, _topology_options(url, running, environment))
    raise UnreachableError(f"no stack runs in {layout.root}: start one, or set {AMQP_URL_VARIABLE}")


def _running(layout: Layout, environment: Mapping[str, str]) -> State:
    """Return the state of the stack that runs in the directory; an empty one if none runs."""
    try:
        state = read_state(layout)
    except UnreadableStateError as error:
        if environment.get(MONGODB_URL_VARIABLE) and environment.get(AMQP_URL_VARIABLE):
            return State()
        raise UnreachableError(str(error)) from error
    return state if state.running else State()


def _topology_options(amqp_url: str, running: State, environment: Mapping[str, str]) -> TopologyOptions:
    """Return what the environment decides, and for the rest what the stack of this broker was started with."""
    return topology_options(environment, running.topology_options if running.amqp_url == amqp_url else DEFAULT_OPTIONS)


def _service_urls(running: State, environment: Mapping[str, str]) -> dict[str, str]:
    known = {process.name: process.url for process in running.processes}
    named = {name: environment.get(process.url_variable, "").rstrip("/") for name, process in PROCESSES.items()}
    return {name: named[name] or known.get(name) or process.default_url for name, process in PROCESSES.items()}
