"""The services that a file of Compose declares, without what another file adds."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def compose_services(file: str) -> dict[str, Any]:
    """Return the services of a file, named from the root of the repository, by their names."""
    services: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]
    return services
