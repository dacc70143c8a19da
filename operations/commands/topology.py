"""The commands `ordersaga topology`: apply and users."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
import uvloop

from operations.commands.target import DataDirectory, chosen_broker
from operations.commands.terminal import open_console, print_error, print_json
from operations.stack.broker_topology import apply_topology, retire_surplus
from operations.stack.broker_users import load_users
from operations.stack.start import StackStartError
from shared import topology as declared
from shared.broker_rights import VIRTUAL_HOST
from shared.bus.partitions import describe_leftovers
from shared.errors import StartError
from shared.urls import hide_credentials

T = TypeVar("T")

topology = typer.Typer(no_args_is_help=True)


@topology.command("apply")
def apply(
    data_dir: DataDirectory = None,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Declare all exchanges, queues and bindings on a broker. Queues that exist already are left as they are.

    ORDERSAGA_EVENTS_RETENTION says for how long the stream of events keeps them. It gets none if that is `off`.
    ORDERSAGA_WEBHOOKS=off keeps events from the inbox of the notification service.
    ORDERSAGA_PARTITIONS says into how many partitions inboxes are divided. Those beyond get no more messages, and are
    deleted once nothing waits in them and no process consumes them; until then, they are named each time.

    The broker is the one in ORDERSAGA_AMQP_URL, with a user that may declare (deployer), else that of the stack that
    runs in the data directory.

    Exit status 0 when all is declared, 1 if the user may not declare it or something exists with other arguments, 3 if
    the broker cannot be reached.
    """
    broker = chosen_broker(data_dir)
    url, options = broker.url, broker.topology_options
    created = _or_fail(lambda: uvloop.run(apply_topology(url, options)), StartError)
    left = _or_fail(lambda: uvloop.run(retire_surplus(url, options.partitions)), StartError)
    retention, counted = options.events_retention, _counts(options)
    if as_json_document:
        about = {"eventsRetention": retention, "partitions": options.partitions, "webhooks": options.webhooks}
        surplus = [each._asdict() for each in left]
        print_json({"amqpUrl": hide_credentials(url), "created": created, **counted, **about, "surplus": surplus})
        return
    console = open_console(highlight=False, soft_wrap=True)
    for part in created:
        console.print(f"created {part}", markup=False)
    counts = ", ".join(f"{number} {name}" for name, number in counted.items())
    events = f"events are kept for {retention}" if retention else f"no events are kept, {declared.EVENTS} gets none"
    webhooks = "" if options.webhooks else "; webhooks are off"
    console.print(f"{hide_credentials(url)} has {counts}; {events}{webhooks}", markup=False)
    if left:
        console.print(describe_leftovers(left), markup=False)


@topology.command("users")
def users(
    secrets: Annotated[
        Path, typer.Option("--secrets", metavar="DIR", help="Directory of the password files; missing ones are made.")
    ],
    virtual_host: Annotated[str, typer.Option("--virtual-host", metavar="NAME")] = VIRTUAL_HOST,
) -> None:
    """Print the users of the broker with their rights, as JSON that RabbitMQ imports ("definitions").

    The passwords are random, in one file for each user (rabbitmq-order and so on), readable by their owner only; the
    output has their salted hashes. Run it again after an upgrade: the passwords stay, the rights are those of the new
    release. docs/broker.md says how to import it.

    Exit status 0, or 1 if a file cannot be read or written.
    """
    found = _or_fail(lambda: load_users(secrets, virtual_host), OSError, StackStartError)
    typer.echo(found.definitions(), nl=False)


def _or_fail(work: Callable[[], T], *expected: type[Exception]) -> T:
    try:
        return work()
    except expected as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    print_error(reason)
    raise typer.Exit(1)


def _counts(options: declared.TopologyOptions) -> dict[str, int]:
    queues, exchanges = declared.all_queues(options), declared.exchanges(options=options)
    return {
        "exchanges": len(exchanges),
        "queues": len(queues),
        "bindings": sum(len(bindings) for bindings in declared.all_bindings(queues, exchanges).values()),
    }
