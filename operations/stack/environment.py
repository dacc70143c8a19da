"""Selects the environment variables that `up` passes on: each program gets what it needs and no more.

A secret must not appear in the environment, the core dump or the child processes of a program that does not need it.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from pydantic_settings import BaseSettings

from operations.stack.layout import (
    AMQP_URL_VARIABLE,
    DATABASE_PREFIX_VARIABLE,
    EVENTS_RETENTION_VARIABLE,
    MONGODB_URL_VARIABLE,
    PARTITIONS_VARIABLE,
    WEBHOOKS_VARIABLE,
)
from shared.services import PROCESSES
from shared.setting_files import SUFFIX, file_variables, with_file_values
from shared.settings import ENV_PREFIX, check_database_prefix, read_partitions, read_retention, read_webhooks
from shared.topology import DEFAULT_OPTIONS, TopologyOptions
from shared.urls import check_amqp_url, check_mongodb_url, check_service_url, hide_credentials_in_value

# Read by any program of this machine.
_SYSTEM = frozenset({"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
_SYSTEM_PREFIXES = ("LC_",)

# Read by Python, HTTP clients and OpenTelemetry.
_PYTHON = frozenset({"VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR", "NO_COLOR"})
_PYTHON_PREFIXES = ("PYTHON", "OTEL_", "COVERAGE_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})

# Read by the commands alone; STACK marks the processes that `up` started.
_OF_COMMANDS = frozenset(
    f"{ENV_PREFIX}{name}"
    for name in (
        "DATA_DIR",
        "MONGOD",
        "RABBITMQ_SERVER",
        "OPERATOR",
        "URL",
        "CONSOLE_URL",
        "SIMULATOR_URL",
        "STACK",
    )
)
_CHECKS: dict[str, Callable[[str], object]] = {
    MONGODB_URL_VARIABLE: check_mongodb_url,
    AMQP_URL_VARIABLE: check_amqp_url,
    DATABASE_PREFIX_VARIABLE: check_database_prefix,
    EVENTS_RETENTION_VARIABLE: read_retention,
    PARTITIONS_VARIABLE: read_partitions,
    WEBHOOKS_VARIABLE: read_webhooks,
    **{process.url_variable: check_service_url for process in PROCESSES.values()},
}
"""The variables of a stack that the commands read too, with a validator for each."""

_WITHOUT_SECRETS = frozenset(
    {DATABASE_PREFIX_VARIABLE, EVENTS_RETENTION_VARIABLE, PARTITIONS_VARIABLE, WEBHOOKS_VARIABLE}
)
"""Those whose values can be shown as they are."""

_BY_FILE_FOR_COMMANDS = frozenset(
    {*_CHECKS, *(f"{ENV_PREFIX}{name}" for name in ("API_KEY", "CONSOLE_URL", "SIMULATOR_URL"))}
)
"""The variables of commands whose value may be in a file."""

_OF_TESTS = f"{ENV_PREFIX}TEST_"


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for MongoDB, RabbitMQ and epmd."""
    return {name: value for name, value in environment.items() if _is_of_system(name)}


def process_environment(settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process with these settings (`module:class`).

    A process reads a file that the environment names itself, so the value that was read from it here is left out.
    """
    declared = _variables(settings)
    files = file_variables(declared)
    by_file = {name for name, file_variable in files.items() if environment.get(file_variable)}
    wanted = declared.union(files.values()) - by_file
    return {
        name: value
        for name, value in environment.items()
        if name in wanted or _is_of_system(name) or _is_of_python(name)
    }


def unknown_settings(environment: Mapping[str, str], every_settings: Iterable[str]) -> list[str]:
    """Return the variables that look like settings but belong to no process and no command."""
    declared = set().union(*map(_variables, every_settings))
    by_file = file_variables(declared).values()
    known = _OF_COMMANDS.union(declared, by_file, (f"{name}{SUFFIX}" for name in _BY_FILE_FOR_COMMANDS))
    ours = (name for name in environment if name.startswith(ENV_PREFIX) and not name.startswith(_OF_TESTS))
    return sorted(name for name in ours if name not in known)


def with_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the values that it names files for, of every process and of the commands.

    Raises SettingFileError, with one line for all files that cannot be used.
    """
    declared = set(_BY_FILE_FOR_COMMANDS).union(*(_variables(process.settings) for process in PROCESSES.values()))
    return with_file_values(environment, declared)


def is_set(environment: Mapping[str, str], variable: str) -> bool:
    """Return True if the environment has the variable's value, or names the file that has it."""
    return bool(environment.get(variable) or environment.get(f"{variable}{SUFFIX}"))


def with_values_for_commands(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the values that it names files for, of the commands. Raises SettingFileError."""
    return with_file_values(environment, _BY_FILE_FOR_COMMANDS)


def invalid_value(environment: Mapping[str, str]) -> str | None:
    """Return an error message for the first variable of a stack that is invalid; None if all are valid."""
    for variable, check in _CHECKS.items():
        if value := environment.get(variable):
            try:
                check(value)
            except ValueError as error:
                shown = value if variable in _WITHOUT_SECRETS else hide_credentials_in_value(value)
                return f"{variable}={shown!r} is not valid: {error}"
    return None


def topology_options(environment: Mapping[str, str], default: TopologyOptions = DEFAULT_OPTIONS) -> TopologyOptions:
    """Return what a stack's environment decides about the topology, and for the rest `default`.

    Raises ValueError for an invalid value.
    """
    partitions, webhooks = environment.get(PARTITIONS_VARIABLE), environment.get(WEBHOOKS_VARIABLE)
    return TopologyOptions(
        read_retention(environment.get(EVENTS_RETENTION_VARIABLE, default.events_retention)),
        read_partitions(partitions) if partitions else default.partitions,
        read_webhooks(webhooks) if webhooks else default.webhooks,
    )


def _is_of_system(name: str) -> bool:
    return name in _SYSTEM or name.startswith(_SYSTEM_PREFIXES)


def _is_of_python(name: str) -> bool:
    return name in _PYTHON or name.startswith(_PYTHON_PREFIXES) or name.lower() in _PROXIES


def _variables(settings: str) -> set[str]:
    """Return the variables of a settings class."""
    module, _, name = settings.partition(":")
    declared = cast("type[BaseSettings]", getattr(importlib.import_module(module), name)).model_fields
    return {f"{ENV_PREFIX}{field.upper()}" for field in declared}
