"""Attack a separate stack and report what it withstands: `make attack`, or with words from the names of rows.

    .venv/bin/python -m benchmarks.attack slowloris "JSON: NaN"

The rows are in `benchmarks.attack_rows`. Each of them must keep these limits: no 5xx answer (503 with Retry-After where
a limit is what is tested), no process above 300 MiB, no restart, and no other request that waits longer than 500 ms.
At the end every service is ready and the audit is clean. Exit status 1 if anything fails.

A slow request on a busy machine may be chance: a row that is a little too slow is run up to three times, and its best
figure counts. The run takes less than five minutes; rows that have not run by then are reported as failed.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import aiohttp
import psutil
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.attack_rows import GOOD, ROWS, TRY_AGAIN, Outcome, Row, Target
from operations.audit.auditing import audit
from operations.commands.stack_display import TemporaryStackDisplay
from operations.demo.demo_stack import DemoStack, temporary_stack
from operations.settings import Stack
from operations.stack.layout import Layout
from operations.stack.processes import find
from operations.stack.run import CANNOT_RUN
from operations.stack.state import ProcessState, read_state
from shared.services import PROCESSES

MOST_SECONDS = 0.5
"""The time limit for requests that are not part of the attack."""
CHANCE_SECONDS = 2.0
"""A request slower than this cannot be blamed on a busy machine."""
MOST_BYTES = 300 << 20
"""The memory limit of a service process."""
GROWTH_BYTES = 8 << 20
RUNS = 3
PROBE_EVERY_SECONDS = 0.05
PROBE_SECONDS = 15.0
MEASURE_EVERY_SECONDS = 0.1
ROW_SECONDS = 45.0
NO_MORE_RUNS_AFTER_SECONDS = 150.0
NO_MORE_ROWS_AFTER_SECONDS = 220.0
SETTLED_WITHIN_SECONDS = 20.0
LARGE_ORDERS = 300
"""Orders of 100 items each, for lists that are worth attacking."""

_console = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Measured:
    """The effects of a row on the stack."""

    outcome: Outcome
    slowest_seconds: float
    peak_bytes: int
    largest: str
    """The service that held most memory."""
    unanswered: tuple[str, ...] = ()
    """Probes that got something other than 200, each as a few words."""
    restarted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The measurements of a row, and its failures: none if it passed."""

    row: Row
    measured: Measured | None
    wrong: tuple[str, ...]


def judge(row: Row, measured: Measured) -> tuple[str, ...]:
    """Return the failures of a row, each in a few words."""
    wrong = [f"{count} times {what}" for what, count in measured.outcome.items() if not _is_fine(row, what)]
    if measured.peak_bytes > MOST_BYTES:
        wrong.append(f"{measured.largest} held {measured.peak_bytes >> 20} MiB")
    wrong += [f"{service} restarted" for service in measured.restarted]
    wrong += measured.unanswered
    if _is_slow(measured):
        wrong.append(f"another request took {measured.slowest_seconds * 1000:.0f} ms")
    return tuple(wrong)


def _is_fine(row: Row, what: str) -> bool:
    if what == TRY_AGAIN:
        return row.limited
    return what in GOOD or (what.isdigit() and int(what) < 500)


def _is_slow(measured: Measured) -> bool:
    return measured.slowest_seconds > MOST_SECONDS


class Watch:
    """Asks every service for its health and for an order all the time, and measures its memory."""

    def __init__(self, stack: Stack, target: Target, layout: Layout) -> None:
        self._layout = layout
        self._urls = [f"{stack.urls[name]}/healthz" for name in PROCESSES]
        self._urls.append(f"{stack.urls['order']}/orders/{target.order_id}")
        self._slowest = 0.0
        self._unanswered: dict[str, None] = {}
        self._before = _sizes(layout)
        self._peaks: dict[str, int] = {}

    async def over(self, attack: "asyncio.Future[Outcome]") -> Measured:
        """Watch the stack until the attack is over and every probe is answered."""
        before = self._pids()
        # A connection for each probe: connection limits are among the targets of the attacks.
        connector, timeout = aiohttp.TCPConnector(force_close=True), aiohttp.ClientTimeout(total=PROBE_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            measuring = asyncio.create_task(self._measure())
            await asyncio.gather(attack, *(self._probe(session, url, attack) for url in self._urls))
            measuring.cancel()
        after = self._pids()
        restarted = tuple(name for name in before if before[name] != after.get(name))
        largest, peak = max(self._peaks.items(), key=lambda item: item[1], default=("none", 0))
        return Measured(attack.result(), self._slowest, peak, largest, tuple(self._unanswered), restarted)

    async def _probe(self, session: aiohttp.ClientSession, url: str, attack: "asyncio.Future[Outcome]") -> None:
        done = False
        while not done:
            done = attack.done()  # once more after the end, for lasting effects of the attack
            started = time.monotonic()
            try:
                async with session.get(url) as answer:
                    await answer.read()
                    if answer.status != 200:
                        self._unanswered[f"{answer.status} from {url.rpartition('/')[0]}"] = None
            except (aiohttp.ClientError, TimeoutError) as error:
                self._unanswered[f"{type(error).__name__} from {url}"] = None
            self._slowest = max(self._slowest, time.monotonic() - started)
            await asyncio.sleep(PROBE_EVERY_SECONDS)

    async def _measure(self) -> None:
        while True:
            for name, size in _sizes(self._layout).items():
                # Memory above the limit from an earlier row does not count here, unless it grows.
                if size <= MOST_BYTES or size > self._before.get(name, 0) + GROWTH_BYTES:
                    self._peaks[name] = max(self._peaks.get(name, 0), size)
            await asyncio.sleep(MEASURE_EVERY_SECONDS)

    def _pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in _running(self._layout).items()}


def _running(layout: Layout) -> dict[str, psutil.Process]:
    """Return the processes of the services that run."""
    services = (process for process in read_state(layout).processes if process.name in PROCESSES)
    return {service.name: process for service in services if (process := _process(service))}


def _sizes(layout: Layout) -> dict[str, int]:
    """Return the memory of each service in bytes."""
    sizes = {}
    for name, process in _running(layout).items():
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes[name] = process.memory_info().rss
    return sizes


def _process(service: ProcessState) -> psutil.Process | None:
    return find(service.identity) if service.identity else None


def run_row(name: str, target: Target) -> Outcome:
    """Run one attack in a separate process, so that its cost here does not slow the probes."""
    row = next(row for row in ROWS if row.name == name)
    return asyncio.run(_attack(row, target))


async def _attack(row: Row, target: Target) -> Outcome:
    try:
        async with asyncio.timeout(ROW_SECONDS):
            return await row.attack(target)
    except Exception as error:  # noqa: BLE001 - what keeps one row from its end must not keep the others from theirs
        return Outcome({f"it ended with {error!r}"[:200]: 1})


class Campaign:
    """All rows, one after the other, against one stack."""

    def __init__(self, demo_stack: DemoStack, target: Target, pool: ProcessPoolExecutor, started: float) -> None:
        self._demo_stack = demo_stack
        self._target = target
        self._pool = pool
        self._started = started
        assert demo_stack.stack.data_dir is not None
        self._layout = Layout(demo_stack.stack.data_dir)

    async def run(self, rows: Sequence[Row]) -> list[Verdict]:
        """Run the rows and print the result of each."""
        verdicts = []
        for row in rows:
            verdict = await self._verdict(row)
            verdicts.append(verdict)
            _console.print(_line(verdict), highlight=False, soft_wrap=True)
        return verdicts

    async def _verdict(self, row: Row) -> Verdict:
        if self._elapsed() > NO_MORE_ROWS_AFTER_SECONDS:
            return Verdict(row, None, ("not run: there was no time left",))
        best: Measured | None = None
        for _ in range(RUNS):
            measured = await self._once(row)
            best = measured if best is None else _better(best, measured)
            if not self._may_be_chance(row, measured):
                break
        assert best is not None
        return Verdict(row, best, judge(row, best))

    def _may_be_chance(self, row: Row, measured: Measured) -> bool:
        """Return whether to run the row again: it was only a little slow, and there is time."""
        only_slow = _is_slow(measured) and len(judge(row, measured)) == 1
        return only_slow and measured.slowest_seconds < CHANCE_SECONDS and self._elapsed() < NO_MORE_RUNS_AFTER_SECONDS

    async def _once(self, row: Row) -> Measured:
        attack = asyncio.get_running_loop().run_in_executor(self._pool, run_row, row.name, self._target)
        return await Watch(self._demo_stack.stack, self._target, self._layout).over(attack)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def _better(one: Measured, other: Measured) -> Measured:
    """Return the second measurement, unless it is only slower than the first."""
    return replace(other, slowest_seconds=min(one.slowest_seconds, other.slowest_seconds))


async def prepare(stack: Stack) -> Target:
    """Place the order that the probes read, and large ones for lists."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.put(f"{stack.urls['inventory']}/inventory/lamp", json={"quantity": 5}):
            pass
        order_id = await _place(session, stack, [{"productId": "lamp", "quantity": 1, "price": 10}])
        items = [{"productId": f"unknown-{number}", "quantity": 1, "price": 1} for number in range(100)]
        for _ in range(LARGE_ORDERS // 20):
            await asyncio.gather(*(_place(session, stack, items) for _ in range(20)))
    return Target(dict(stack.urls), stack.amqp_url, order_id)


async def _place(session: aiohttp.ClientSession, stack: Stack, items: Sequence[Mapping[str, object]]) -> str:
    total = sum(int(str(item["price"])) for item in items)
    body = {"userId": "u1", "items": items, "totalAmount": total, "payment": {"token": "tok_ok"}}
    async with session.post(f"{stack.urls['order']}/orders", json=body) as answer:
        return str((await answer.json())["orderId"])


async def aftermath(stack: Stack) -> tuple[str, ...]:
    """Return what is wrong with the stack at the end: services that are not ready, findings of the audit."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        deadline = time.monotonic() + SETTLED_WITHIN_SECONDS
        while (unready := await _unready(session, stack)) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
    report = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix)
    return (
        *(f"{name} is not ready" for name in unready),
        *(f"audit: {violation.describe()}" for violation in report.violations),
    )


async def _unready(session: aiohttp.ClientSession, stack: Stack) -> list[str]:
    unready = []
    for name in PROCESSES:
        try:
            async with session.get(f"{stack.urls[name]}/readyz") as answer:
                if answer.status != 200:
                    unready.append(name)
        except (aiohttp.ClientError, TimeoutError):
            unready.append(name)
    return unready


def show(verdicts: Sequence[Verdict], wrong_at_the_end: Sequence[str]) -> None:
    """Print the table."""
    table = Table("attack", "answers", "slowest other", "most memory", "verdict")
    for verdict in verdicts:
        table.add_row(*map(escape, _cells(verdict)), style="red" if verdict.wrong else None)
    _console.print(table)
    failed = sum(1 for verdict in verdicts if verdict.wrong)
    _console.print(f"{len(verdicts) - failed} of {len(verdicts)} attacks withstood", highlight=False)
    for wrong in wrong_at_the_end:
        _console.print(f"[red]at the end: {escape(wrong)}[/]", highlight=False)
    if not wrong_at_the_end:
        _console.print("every service is ready, and the audit is clean", highlight=False)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    judged = "; ".join(verdict.wrong) or "withstood"
    if verdict.measured is None:
        return verdict.row.name, "", "", "", judged
    measured = verdict.measured
    answers = ", ".join(f"{what}: {count}" for what, count in measured.outcome.most_common())
    memory = f"{measured.peak_bytes >> 20} MiB ({measured.largest})"
    return verdict.row.name, answers, f"{measured.slowest_seconds * 1000:.0f} ms", memory, judged


def _line(verdict: Verdict) -> str:
    mark = "[red]✗[/]" if verdict.wrong else "[green]✓[/]"
    name, _, slowest, memory, judged = _cells(verdict)
    return f"{mark} {escape(name)}: {slowest}, {memory}: {escape(judged)}"


async def _run(demo_stack: DemoStack, rows: Sequence[Row], started: float) -> bool:
    target = await prepare(demo_stack.stack)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        verdicts = await Campaign(demo_stack, target, pool, started).run(rows)
    wrong = await aftermath(demo_stack.stack)
    show(verdicts, wrong)
    return not wrong and not any(verdict.wrong for verdict in verdicts)


def main() -> None:
    """Start a stack, attack it, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="only rows whose names contain one of these")
    words = parser.parse_args().rows
    rows = [row for row in ROWS if not words or any(word in row.name for word in words)]
    started = time.monotonic()
    try:
        # Without keys, so that every attack reaches the code behind the check of a key.
        with temporary_stack(TemporaryStackDisplay(_console), no_auth=True) as demo_stack:
            held = uvloop.run(_run(demo_stack, rows, started))
            demo_stack.keep_data = not held
    except CANNOT_RUN as error:
        sys.exit(str(error))
    _console.print(f"{time.monotonic() - started:.0f} s", highlight=False)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
