"""The command `ordersaga upgrade check`."""

from pathlib import Path
from typing import Annotated, Any

import aio_pika.exceptions
import typer
import uvloop

from operations.commands.doctor import control_of, show_findings
from operations.commands.target import DataDirectory, chosen_stack
from operations.commands.terminal import print_json
from operations.doctor.broker import check_exchanges, check_queues
from operations.doctor.database_users import check_users
from operations.doctor.finding import Finding
from operations.errors import UnreachableError
from operations.settings import Stack
from operations.stack.layout import Layout, choose_data_directory
from operations.stack.state import read_state_if_readable
from operations.upgrade.decision import THIS_RELEASE, InFlight, judge
from operations.upgrade.in_flight import read_in_flight
from shared.bus.amqp.connecting import connect
from shared.outage_words import with_detail

BROKER_SECONDS = 5.0

upgrade = typer.Typer(no_args_is_help=True)


@upgrade.callback()
def _group() -> None:
    """Check what is in flight before an upgrade or rollback."""


@upgrade.command("check")
def check(
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say whether the release of this command can carry on what is in flight in a running stack. Nothing is changed.

    Run it with the release that is to be started: the new one before an upgrade, the former one before a rollback. It
    compares the unsettled orders and the versions of the saga that they began under, open dead letters, messages in
    queues, the versions of the processes, the topology of the broker, and the collections, indexes and rights in
    MongoDB with what this release knows and needs. docs/upgrading.md says what to do in which order.

    Exit status 0 if the release can carry it on, 1 if something must be done first (each reason is listed, with what to
    do), 3 if a server cannot be reached.
    """
    stack = chosen_stack(data_dir)
    in_flight, findings = uvloop.run(_examine(stack, data_dir))
    reasons = sum(finding.outcome == "wrong" for finding in findings)
    if as_json_document:
        print_json({"stack": stack.as_json(), **_as_json(in_flight, findings, reasons)})
    else:
        show_findings(findings, _verdict(reasons))
    raise typer.Exit(1 if reasons else 0)


async def _examine(stack: Stack, data_dir: Path | None) -> tuple[InFlight, list[Finding]]:
    layout = Layout(choose_data_directory(data_dir, last_used=True))
    in_flight = await read_in_flight(stack, control_of(layout, read_state_if_readable(layout), stack))
    return in_flight, [*judge(in_flight), *await _examine_broker(stack), *await _examine_users(stack)]


async def _examine_broker(stack: Stack) -> list[Finding]:
    try:
        connection = await connect(stack.amqp_url, BROKER_SECONDS)
        async with connection:
            options = stack.topology_options
            return [await check_exchanges(connection, options), await check_queues(connection, options)]
    except (OSError, TimeoutError, aio_pika.exceptions.AMQPError) as error:
        raise UnreachableError(f"RabbitMQ does not answer: {with_detail(error)}") from error


async def _examine_users(stack: Stack) -> list[Finding]:
    users = check_users(stack.url_for_changes, stack.database_prefix, stack.database_users)
    return [finding async for finding in users]


def _as_json(in_flight: InFlight, findings: list[Finding], reasons: int) -> dict[str, Any]:
    return {
        "ok": not reasons,
        "version": THIS_RELEASE.version,
        "sagaVersions": list(THIS_RELEASE.saga_versions),
        "orders": [
            {"sagaVersion": found.saga_version, "status": found.status, "number": found.number}
            for found in in_flight.orders
        ],
        "deadLetters": [found._asdict() for found in in_flight.letters],
        "queues": [found._asdict() for found in in_flight.queues],
        "processes": [found._asdict() for found in in_flight.processes],
        "findings": [finding.as_json() for finding in findings],
    }


def _verdict(reasons: int) -> str:
    version = THIS_RELEASE.version
    return f"{version} cannot carry this on yet: {reasons} to do first" if reasons else f"{version} can carry this on"
