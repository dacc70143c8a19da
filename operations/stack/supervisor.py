"""Keeps a stack running: starts its programs in stages, restarts those that die, ends them in reverse order."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from operations.stack.layout import Layout
from operations.stack.processes import Child, end_all, find_marked, spawn
from operations.stack.program import Program, ServerMissingError
from operations.stack.start import StackStartError, exit_text, wait_until_ready
from operations.stack.state import Phase, ProcessState, State, write_state
from operations.stack.state_writer import StateWriter
from shared.outage_words import with_detail

READY_WITHIN_SECONDS = 90.0
FIRST_RESTART_DELAY_SECONDS = 0.2
LONGEST_RESTART_DELAY_SECONDS = 10.0
# A program that ran for this long is restarted as quickly as one that never died before.
HEALTHY_SECONDS = 10.0


def restart_delay(quick_deaths: int) -> float:
    """Return the seconds until the next start after a number of deaths in quick succession."""
    return min(FIRST_RESTART_DELAY_SECONDS * 2.0 ** min(quick_deaths, 10), LONGEST_RESTART_DELAY_SECONDS)


@dataclass
class _Unit:
    """A program and its current process."""

    program: Program
    child: Child | None = None
    started_at: float = 0.0
    quick_deaths: int = 0


class Supervisor:
    """Runs the programs of one stack. The caller holds the lock of the data directory.

    `on_change` receives every new state after it was stored, `on_event` a line of text for each death and restart.
    Both may raise OSError, as happens with a full disk or a closed terminal.
    """

    def __init__(
        self,
        layout: Layout,
        stages: Sequence[Sequence[Program]],
        state: State,
        on_change: Callable[[State], None] = lambda _: None,
        on_event: Callable[[str], None] = lambda _: None,
        ready_within_seconds: float = READY_WITHIN_SECONDS,
    ) -> None:
        self._layout = layout
        self._stages = [[_Unit(program) for program in stage] for stage in stages]
        self._writer = StateWriter(layout, on_change, on_event)
        self._ready_within_seconds = ready_within_seconds
        self._stop_requested = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []
        self.state = replace(
            state,
            processes=tuple(ProcessState(unit.program.name, unit.program.url) for unit in self._units()),
        )

    def _units(self) -> list[_Unit]:
        return [unit for stage in self._stages for unit in stage]

    def request_stop(self) -> None:
        """End the stack in order; the second request kills its processes."""
        if self._stop_requested.is_set():
            for unit in self._units():
                if unit.child is not None and unit.child.running:
                    unit.child.kill()
        self._stop_requested.set()

    async def run(self) -> None:
        """Start all programs, keep them running until a stop is requested, and end them.

        Raises StackStartError, with all programs ended, if one ends during its first start or is not ready in time.
        """
        retrying = asyncio.create_task(self._writer.retry())
        try:
            self._set_phase("starting")
            if await self._start_all():
                self._set_phase("ready")
                await self._stop_requested.wait()
            self._set_phase("stopping")
        except StackStartError as error:
            self._set_phase("failed", str(error))
            raise
        finally:
            await self._end()
            await _cancel([retrying])
        self._set_phase("stopped")

    async def _start_all(self) -> bool:
        """Start all stages; return False if a stop was requested before they were ready."""
        starting = asyncio.create_task(self._start_stages())
        stopping = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
            return starting.done()
        finally:
            await _cancel([starting, stopping])

    async def _start_stages(self) -> None:
        for stage in self._stages:
            if stage is self._stages[-1]:
                self._keep_data()
            tasks = [asyncio.create_task(self._start(unit)) for unit in stage]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _cancel(tasks)

    def _keep_data(self) -> None:
        """Record, before a service starts, that the next start of the stack must not delete the servers' data."""
        if self.state.is_new_cluster:
            state = replace(self.state, is_new_cluster=False)
            try:
                write_state(self._layout, state)
            except OSError as error:
                raise StackStartError(f"{self._layout.state_file} cannot be written: {error.strerror}") from error
            self._set(state)

    async def _start(self, unit: _Unit) -> None:
        """Start a program for the first time and watch it once it is ready."""
        await self._spawn(unit)
        await self._await_ready(unit)
        self._watchers.append(asyncio.create_task(self._keep_running(unit)))

    async def _spawn(self, unit: _Unit) -> None:
        log = self._log(unit)
        unit.started_at = time.monotonic()
        try:
            unit.child = await spawn(unit.program.prepare(), log, self._layout.root)
        except (OSError, ServerMissingError) as error:
            raise StackStartError(f"{unit.program.name} cannot be started: {error}") from error
        self._set_process(unit, identity=unit.child.identity, ready=False, detail="starting")

    def _log(self, unit: _Unit) -> Path:
        return self._layout.logs / f"{unit.program.name}.log"

    async def _await_ready(self, unit: _Unit) -> None:
        assert unit.child is not None  # noqa: S101 - spawned just before
        await wait_until_ready(
            unit.program,
            unit.child,
            self._ready_within_seconds,
            lambda reason: self._set_process(unit, detail=reason),
        )
        self._set_process(unit, ready=True, detail="ready")

    async def _keep_running(self, unit: _Unit) -> None:
        """Restart the program whenever it dies, until cancelled."""
        while unit.child is not None:
            status = await unit.child.wait()
            lived = time.monotonic() - unit.started_at
            unit.quick_deaths = 0 if lived > HEALTHY_SECONDS else unit.quick_deaths + 1
            delay = restart_delay(max(0, unit.quick_deaths - 1))
            self._writer.add_event(
                f"{unit.program.name} (pid {unit.child.pid}) ended {exit_text(status)}: restart in {delay:.1f} s"
            )
            self._set_process(unit, identity=None, ready=False, detail=f"ended {exit_text(status)}")
            await asyncio.sleep(delay)
            await self._restart(unit)

    async def _restart(self, unit: _Unit) -> None:
        restarts = next(process.restarts for process in self.state.processes if process.name == unit.program.name)
        try:
            await self._spawn(unit)
            self._set_process(unit, restarts=restarts + 1)
            await self._await_ready(unit)
            self._writer.add_event(f"{unit.program.name} is running again (pid {unit.child.pid if unit.child else 0})")
        except StackStartError as error:
            self._writer.add_event(str(error))
        except Exception as error:  # noqa: BLE001 - a watcher that ends would never restart its program
            self._writer.add_event(f"{unit.program.name} could not be restarted: {with_detail(error)}")

    async def _end(self) -> None:
        """End all programs, last stage first; the programs of a stage end concurrently."""
        await _cancel(self._watchers)
        for stage in reversed(self._stages):
            await asyncio.gather(*(self._end_one(unit) for unit in stage))
        # Children that a program left behind, and a program whose start was interrupted before it was recorded.
        await asyncio.to_thread(lambda: end_all(find_marked(self._layout.root), grace_seconds=5))

    async def _end_one(self, unit: _Unit) -> None:
        if unit.child is not None:
            await unit.child.end(unit.program.grace_seconds)
            self._set_process(unit, identity=None, ready=False, detail="ended")

    def _set_phase(self, phase: Phase, error: str | None = None) -> None:
        self._set(replace(self.state, phase=phase, error=error))

    def _set_process(self, unit: _Unit, **changes: object) -> None:
        known = next(process for process in self.state.processes if process.name == unit.program.name)
        self._set(self.state.with_process(replace(known, **changes)))  # type: ignore[arg-type]

    def _set(self, state: State) -> None:
        self.state = state
        self._writer.write(state)


async def _cancel(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, StackStartError):
            await task
