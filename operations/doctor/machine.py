"""Checks the prerequisites on this machine."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from operations.doctor.finding import Finding, note, ok, wrong
from operations.stack.environment import is_set
from operations.stack.layout import AMQP_URL_VARIABLE, MONGODB_URL_VARIABLE, SERVER_PORTS
from operations.stack.mongod import find_mongod, mongod_version
from operations.stack.ports import is_free
from operations.stack.program import ServerMissingError
from operations.stack.rabbitmq import SYSTEM_DIRECTORIES, find_rabbitmq
from shared.services import PROCESSES

OLDEST_PYTHON = (3, 11)
OLDEST_MONGOD = (5, 0)
OLDEST_RABBITMQ = (3, 10)
FREE_DISK_BYTES = 2 * 1024**3


def check_machine(data_directory: Path, environment: Mapping[str, str], *, stack_runs: bool) -> Iterator[Finding]:
    """Check the prerequisites of `up` and the services; an external server needs no program on this machine."""
    yield check_python(sys.version_info[:3])
    if not is_set(environment, MONGODB_URL_VARIABLE):
        yield check_mongod(environment)
    if not is_set(environment, AMQP_URL_VARIABLE):
        yield check_rabbitmq(environment)
        yield check_erlang(environment)
    if not stack_runs:
        yield check_ports()
    yield check_disk(data_directory)


def check_python(version: tuple[int, ...]) -> Finding:
    """Check the version of Python."""
    text = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return wrong("Python", f"{text} is too old", "install Python 3.11 or later, then run make setup")
    return ok("Python", f"{text} ({platform.python_implementation()})")


def check_mongod(environment: Mapping[str, str]) -> Finding:
    """Check that mongod is installed and runs."""
    fix = "run make setup, or set ORDERSAGA_MONGOD to a mongod of version 5.0 or later"
    try:
        binary = find_mongod(environment)
        version = mongod_version(binary)
    except ServerMissingError as error:
        return wrong("mongod", str(error), fix)
    text = ".".join(map(str, version))
    if version < OLDEST_MONGOD:
        return wrong("mongod", f"{text} at {binary} is too old", fix)
    return ok("mongod", f"{text} at {binary}")


def check_rabbitmq(environment: Mapping[str, str]) -> Finding:
    """Check that RabbitMQ is installed."""
    fix = "apt-get install rabbitmq-server, or set ORDERSAGA_RABBITMQ_SERVER to one of version 3.10 or later"
    try:
        installation = find_rabbitmq(environment)
    except ServerMissingError as error:
        return wrong("RabbitMQ", str(error), fix)
    version = installation.version
    if version is None:
        return note("RabbitMQ", f"unknown version at {installation.scripts}")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_RABBITMQ:
        return wrong("RabbitMQ", f"{version} at {installation.scripts} is too old", fix)
    return ok("RabbitMQ", f"{version} at {installation.scripts}")


def check_erlang(environment: Mapping[str, str]) -> Finding:
    """Check that Erlang is installed and runs."""
    path = ":".join([environment.get("PATH", ""), *SYSTEM_DIRECTORIES])
    erl = shutil.which("erl", path=path)
    if erl is None:
        return wrong("Erlang", "erl was not found", "apt-get install erlang-base, or add erl to the PATH")
    expression = 'io:format("~s", [erlang:system_info(otp_release)]), halt().'
    try:
        answer = subprocess.run(  # noqa: S603 - the program that RabbitMQ would run
            [erl, "-noshell", "-eval", expression], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return wrong("Erlang", f"{erl} failed: {error}", "reinstall erlang-base")
    return ok("Erlang", f"OTP {answer.stdout} at {erl}")


def check_ports() -> Finding:
    """Check that the default ports are free; if not, `up` uses others."""
    defaults = {name: process.port for name, process in PROCESSES.items()} | SERVER_PORTS
    taken = [f"{port} ({name})" for name, port in defaults.items() if not is_free(port)]
    if taken:
        return note("ports", f"taken: {', '.join(taken)}", "`ordersaga up` uses other ports instead and prints them")
    return ok("ports", f"all free: {', '.join(map(str, sorted(defaults.values())))}")


def check_disk(data_directory: Path) -> Finding:
    """Check that there is disk space for the data of a stack."""
    # Not Path.exists, which raises PermissionError below a directory that may not be searched.
    existing = next(path for path in (data_directory, *data_directory.parents) if os.path.exists(path))
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1024**3:.1f} GiB free for {data_directory}"
    if free < FREE_DISK_BYTES:
        return wrong("disk", detail, "free 2 GiB, or choose another directory with --data-dir")
    return ok("disk", detail)
