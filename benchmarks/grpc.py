"""Compare the time to place an order over HTTP and over gRPC, in turns, against a running stack.

    ordersaga up --detach --grpc
    export ORDERSAGA_API_KEY=$(ordersaga keys create --role admin --owner benchmark)
    python -m benchmarks.grpc [--http http://127.0.0.1:3008] [--grpc 127.0.0.1:3018] [--orders 300] [--rounds 3]

Orders have no slot, so both answer when the order is stored. `clients` place their orders one after the other, each on
the connections that its library keeps open. The rounds of the two protocols alternate, and the table has all of them.
CPU is that of the order service per order, which also carries the orders on meanwhile; without other services running
(`--only order`) it is that of taking them.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import uvloop
from grpc import aio
from rich.console import Console
from rich.table import Table

from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.generated.orders_pb2_grpc import OrderServiceStub

Place = Callable[[], Awaitable[object]]
CLIENTS = (1, 20)


async def _measure(place: Place, orders: int, clients: int) -> list[float]:
    """Return the seconds that each order took."""
    left, took = iter(range(orders)), []

    async def client() -> None:
        for _ in left:
            started = time.perf_counter()
            await place()
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(clients)))
    return took


async def _cpu_seconds(http: httpx.AsyncClient) -> float:
    """Return the CPU time of the order service so far."""
    metrics = (await http.get("/metrics")).text
    return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("process_cpu_seconds_total"))


Figures = dict[tuple[str, int], tuple[list[float], list[float]]]
"""By protocol and number of clients: the seconds of each order, and the CPU seconds per order of each round."""


async def _compare(options: argparse.Namespace, authorization: str) -> Figures:
    body = {"userId": "u1", "items": [{"productId": "p1", "quantity": 1, "price": 10}], "totalAmount": 10}
    request = pb.CreateOrderRequest(
        user_id="u1", items=[pb.Item(product_id="p1", quantity=1, price="10")], total_amount="10"
    )
    figures: Figures = {}
    async with (
        httpx.AsyncClient(base_url=options.http, headers={"Authorization": authorization}) as http,
        aio.insecure_channel(options.grpc) as channel,
    ):
        orders = OrderServiceStub(channel)  # type: ignore[no-untyped-call]

        async def over_http() -> None:
            (await http.post("/orders", json=body)).raise_for_status()

        async def over_grpc() -> None:
            await orders.CreateOrder(request, metadata=(("authorization", authorization),))

        ways: dict[str, Place] = {"HTTP": over_http, "gRPC": over_grpc}
        for place in ways.values():
            await _measure(place, 20, 1)
        for _ in range(options.rounds):
            for clients in CLIENTS:
                for name, place in ways.items():
                    seconds, cpu = figures.setdefault((name, clients), ([], []))
                    before = await _cpu_seconds(http)
                    seconds += await _measure(place, options.orders, clients)
                    cpu.append((await _cpu_seconds(http) - before) / options.orders)
    return figures


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", default="http://127.0.0.1:3008")
    parser.add_argument("--grpc", default="127.0.0.1:3018")
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = uvloop.run(_compare(options, f"Bearer {os.environ['ORDERSAGA_API_KEY']}"))
    table = Table("protocol", "clients", "p50 ms", "p99 ms", "CPU ms")
    for (name, clients), (took, cpu) in sorted(figures.items(), key=lambda item: item[0][1]):
        p99 = statistics.quantiles(took, n=100)[98]
        shown = (statistics.median(took), p99, statistics.median(cpu))
        table.add_row(name, str(clients), *(f"{value * 1000:.1f}" for value in shown))
    Console().print(table)


if __name__ == "__main__":
    main()
