"""The cost of charging cards: the payment service's handler over a real database, in batches of several sizes.

    python -m benchmarks.payments "mongodb://127.0.0.1:27017/?replicaSet=rs0" [--payments 6000]

The table shows payments per second, the time per batch, and CPU time per payment in this process and in mongod (if it
runs on this machine). The benchmark uses its own database and drops it at the end.
"""

import argparse
import os
import secrets
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from payment_service import payments
from payment_service.card_charger import CardCharger
from payment_service.gateways import simulated
from payment_service.gateways.simulated import SimulatedGateway
from payment_service.handlers import PaymentHandlers
from payment_service.ledger.ledger import Ledger
from payment_service.ledger.transactions import Transactions
from payment_service.part_refunder import PartRefunder
from payment_service.payments import Payments
from payment_service.retainer_charger import RetainerCharger
from shared import database, schema
from shared.clock import utc_now
from shared.contracts import OrderCreated
from shared.contracts.orders import Item, PaymentInstruction
from shared.database import Database
from shared.failpoints import nothing_fails
from shared.settings import ServiceSettings

NAME = "ordersaga_benchmark_payments"
SIZES = (1, 10, 50, 200)
MOST_BATCHES = 600


def order() -> OrderCreated:
    """Return an order for one unit, whose charge succeeds."""
    return OrderCreated(
        order_id=secrets.token_hex(16),
        user_id="u1",
        items=(Item(product_id="p1", quantity=1, price=1000),),
        total_amount=1000,
        payment=PaymentInstruction(token="tok_ok"),
    )


def handlers(source: Database) -> PaymentHandlers:
    """Wire the handlers of one payment process."""
    records = Payments(source[payments.COLLECTION])
    gateway = SimulatedGateway(source[simulated.COLLECTION], failure_rate=0.1, clock=utc_now)
    cards = CardCharger(records, gateway, timeout_seconds=5, clock=utc_now, failpoint=nothing_fails)
    retainers = RetainerCharger(records, Ledger(source, utc_now), Transactions(source), utc_now)
    parts = PartRefunder(records, cards, retainers, clock=utc_now, failpoint=nothing_fails)
    return PaymentHandlers(
        records, cards, retainers, parts, capture_on_confirm=False, clock=utc_now, failpoint=nothing_fails
    )


def mongod_at(url: str) -> psutil.Process | None:
    """Return the process that listens on the URL's port, None if there is none on this machine."""
    port = urlsplit(url).port or 27017
    for connection in psutil.net_connections("tcp"):
        address = connection.laddr
        if address and address.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
            return psutil.Process(connection.pid)
    return None


def cpu_seconds(process: psutil.Process | None) -> float:
    """Return the CPU time that the process has used so far."""
    if process is None:
        return float("nan")
    used = process.cpu_times()
    return float(used.user + used.system)


async def measure(source: Database, mongod: psutil.Process | None, size: int, count: int) -> Sequence[str]:
    """Charge in batches of that size and return a row of the table."""
    batches = [[order() for _ in range(size)] for _ in range(min(MOST_BATCHES, max(1, count // size)))]
    worker, here = handlers(source), psutil.Process(os.getpid())
    await worker.charge([order()])
    started, own, servers = time.perf_counter(), cpu_seconds(here), cpu_seconds(mongod)
    for batch in batches:
        await worker.charge(batch)
    seconds, own, servers = time.perf_counter() - started, cpu_seconds(here) - own, cpu_seconds(mongod) - servers
    charged = size * len(batches)
    return (
        str(size),
        f"{charged / seconds:,.0f}",
        f"{seconds / len(batches) * 1000:.1f}",
        f"{own / charged * 1e6:.0f}",
        f"{servers / charged * 1e6:.0f}",
    )


async def run(url: str, count: int) -> None:
    """Measure every size and print the table."""
    mongo = database.client(ServiceSettings(mongodb_url=url))
    table = Table("batch", "payments/s", "ms/batch", "service µs/payment", "mongod µs/payment")
    try:
        source = mongo[NAME]
        await schema.prepare(source, {payments.COLLECTION: payments.SCHEMA})
        for size in SIZES:
            table.add_row(*await measure(source, mongod_at(url), size, count))
    finally:
        await mongo.drop_database(NAME)
        await database.close(mongo)
    Console().print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a MongoDB replica set")
    parser.add_argument("--payments", type=int, default=6000, help="payments for each batch size")
    arguments = parser.parse_args()
    uvloop.run(run(arguments.url, arguments.payments))


if __name__ == "__main__":
    main()
