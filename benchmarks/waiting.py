"""Measures `Prefer: wait` beside polling on a fresh stack: `python -m benchmarks.waiting [requests]`.

Many clients at once place an order each and want its final status: first all of them wait, then all of them poll every
50 ms; both twice. Starts a stack of its own, in a temporary directory.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

POLL_SECONDS = 0.05
FINAL = ("CONFIRMED", "CANCELLED", "FAILED", "COMPLETED")
OFFSET = 4000
"""Added to all ports, so that the stack runs beside another one."""
ORDERS = f"http://127.0.0.1:{3008 + OFFSET}/orders"
INVENTORY = f"http://127.0.0.1:{3009 + OFFSET}/inventory/p1"
BODY = {
    "userId": "u1",
    "items": [{"productId": "p1", "quantity": 1, "price": 10}],
    "totalAmount": 10,
    "payment": {"token": "tok_ok"},
}


async def _wait(client: httpx.AsyncClient) -> str:
    answer = await client.post(ORDERS, json=BODY, headers={"Prefer": "wait=30"})
    return str(answer.json()["status"])


async def _poll(client: httpx.AsyncClient) -> str:
    placed = (await client.post(ORDERS, json=BODY)).json()
    while (status := placed["status"]) not in FINAL:
        await asyncio.sleep(POLL_SECONDS)
        placed = (await client.get(f"{ORDERS}/{placed['orderId']}")).json()
    return str(status)


async def _measure(name: str, client: httpx.AsyncClient, call: Callable[[httpx.AsyncClient], Awaitable[str]]) -> None:
    async def timed() -> float:
        began = time.perf_counter()
        status = await call(client)
        if status != "CONFIRMED":
            raise SystemExit(f"an order is {status}")
        return time.perf_counter() - began

    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    times = sorted(await asyncio.gather(*(timed() for _ in range(requests))))
    print(f"{name}: {requests} at once, p50 {statistics.median(times):.3f} s, last {times[-1]:.3f} s")


async def _run(key: str) -> None:
    limits = httpx.Limits(max_connections=400, keepalive_expiry=1)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(limits=limits, timeout=90, headers=headers) as client:
        (await client.put(INVENTORY, json={"quantity": 100_000})).raise_for_status()
        for _ in range(2):  # the second time with warm connections
            await _measure("Prefer: wait", client, _wait)
            await _measure(f"polling every {POLL_SECONDS * 1000:.0f} ms", client, _poll)


def main() -> None:
    """Start a stack, measure both, and end the stack."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"ORDERSAGA_DATA_DIR": f"{directory}/stack", "XDG_STATE_HOME": f"{directory}/state"}
        command = [str(Path(sys.executable).with_name("ordersaga"))]
        only = "order,inventory,payment"
        subprocess.run([*command, "up", "--detach", "--port-offset", str(OFFSET), "--only", only], check=True)
        try:
            create = [*command, "keys", "create", "--role", "admin", "--owner", "bench"]
            key = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
            asyncio.run(_run(key))
        finally:
            subprocess.run([*command, "down"], check=True)


if __name__ == "__main__":
    main()
