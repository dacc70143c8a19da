"""The schemas of all services. Each is imported when it is asked for: the stack comes before the services."""

import importlib

from shared import schema
from shared.services import SERVICES


def schema_of(service: str) -> schema.Collections:
    """Return the schema of a service's collections."""
    declared: schema.Collections = importlib.import_module(f"{SERVICES[service].package}.schema").SCHEMA
    return declared


def all_schemas() -> dict[str, schema.Collections]:
    """Return the schemas of all services, by the service's name."""
    return {name: schema_of(name) for name in SERVICES}
