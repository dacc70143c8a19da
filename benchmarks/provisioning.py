"""Measure the concurrency of provisioning: many jobs over many packages, with a slow provider.

    python -m benchmarks.provisioning "mongodb://127.0.0.1:27017/?replicaSet=rs0" "amqp://guest:guest@127.0.0.1:5672/"
        [--jobs 200] [--packages 50] [--delay 2] [--processes 1]

It starts the provider's simulator and provisioning processes, with a separate database that is dropped at the end. The
broker must not be used by anything else. The output shows the time until the last job has ended, the lowest possible
time (a package serves its jobs one after the other), and CPU time per job in the provisioning processes.
"""

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping

import httpx
import psutil
import uvloop
from cryptography.fernet import Fernet
from pymongo import AsyncMongoClient

from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.contracts import ProvisionServer
from shared.database import Document

PORT = 3913


def environment(options: argparse.Namespace, prefix: str) -> Mapping[str, str]:
    """Return the environment of the simulator and the provisioning processes."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")},
        "ORDERSAGA_MONGODB_URL": options.mongodb_url,
        "ORDERSAGA_AMQP_URL": options.amqp_url,
        "ORDERSAGA_TOPOLOGY": "declare",
        "ORDERSAGA_DATABASE_PREFIX": prefix,
        "ORDERSAGA_SMARTVPS_URL": f"http://127.0.0.1:{PORT}",
        "ORDERSAGA_SMARTVPS_USERNAME": "simulator",
        "ORDERSAGA_SMARTVPS_PASSWORD": "simulator",
        "ORDERSAGA_CREDENTIALS_KEY": Fernet.generate_key().decode(),
        "ORDERSAGA_LOG_LEVEL": "ERROR",
        "ORDERSAGA_AUTH": "off",
    }


async def start(module: str, port: int, settings: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a process and wait until it is ready."""
    command = (sys.executable, "-m", module)
    process = await asyncio.create_subprocess_exec(*command, env={**settings, "ORDERSAGA_HTTP_PORT": str(port)})
    async with httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success:
                    return process
            except httpx.HTTPError:
                await asyncio.sleep(0.1)


async def prepare(options: argparse.Namespace) -> list[str]:
    """Set the packages, each with an address per job; return their names."""
    names = [f"10.{number // 250}.{number % 250}" for number in range(options.packages)]
    each = -(-options.jobs // options.packages)
    packages = [{"id": name, "name": name, "ips": [f"{name}.{ip}" for ip in range(1, each + 1)]} for name in names]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}/_control") as client:
        (await client.post("/packages", json={"packages": packages})).raise_for_status()
        (await client.post("/faults", json={"buy": {"delaySeconds": options.delay}})).raise_for_status()
    return names


async def buy_all(options: argparse.Namespace, names: list[str], database: str) -> tuple[float, Counter[str]]:
    """Request all servers at once; return the seconds until the last job ended, and the counts by state."""
    bus = RabbitBus(options.amqp_url, prefetch=10)
    await bus.start(None)
    requests = [
        ProvisionServer(order_id=secrets.token_hex(16), user_id="u1", package=names[number % len(names)], ram=2048)
        for number in range(options.jobs)
    ]
    async with AsyncMongoClient[Document](options.mongodb_url) as client:
        jobs = client[database]["jobs"]
        started = time.perf_counter()
        await Publisher(bus).send(requests)
        while await jobs.count_documents({"state": {"$in": ["COMPLETED", "FAILED"]}}) < options.jobs:
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - started
        states = Counter([document["state"] async for document in jobs.find({}, {"state": True})])
        await client.drop_database(database)
    await bus.close()
    return seconds, states


async def measure(options: argparse.Namespace) -> None:
    """Run the benchmark and print the results."""
    prefix = f"benchmark{secrets.token_hex(4)}"
    settings = environment(options, prefix)
    processes = [await start("provisioning_service.simulator", PORT, settings)]
    try:
        ports = range(PORT + 1, PORT + 1 + options.processes)
        processes += [await start("provisioning_service", port, settings) for port in ports]
        workers = [psutil.Process(process.pid) for process in processes[1:]]
        before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
        seconds, states = await buy_all(options, await prepare(options), f"{prefix}_provisioning")
        cpu = sum(sum(worker.cpu_times()[:2]) for worker in workers) - before
    finally:
        for process in processes:
            process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))
    least = -(-options.jobs // options.packages) * options.delay
    print(f"{options.jobs} jobs over {options.packages} packages, {options.processes} processes: {dict(states)}")
    print(f"{seconds:.1f} s; one after the other per package: {least:g} s; all: {options.jobs * options.delay:g} s")
    print(f"{1000 * cpu / options.jobs:.1f} ms of CPU per job in the provisioning service")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mongodb_url")
    parser.add_argument("amqp_url")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--packages", type=int, default=50)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds that the provider takes to sell")
    parser.add_argument("--processes", type=int, default=1)
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
