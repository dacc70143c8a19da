"""Keeps a stack running: starts its programs in stages, restarts what dies, ends all of it in reverse order."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from operations.stack.layout import Layout
from operations.stack.processes import Child, end_all, find_marked, spawn
from operations.stack.program import Program, ServerMissingError
from operations.stack.recorder import Recorder
from operations.stack.start import StartError, exit_text, until_ready
from operations.stack.state import Phase, ProcessState, State

READY_WITHIN_SECONDS = 90.0
FIRST_RESTART_DELAY_SECONDS = 0.2
LONGEST_RESTART_DELAY_SECONDS = 10.0
# A program that lived this long is restarted as quickly as one that never died before.
HEALTHY_SECONDS = 10.0


def restart_delay(quick_deaths: int) -> float:
    """Return the seconds to wait before the next start, after this many deaths shortly after a start."""
    return min(FIRST_RESTART_DELAY_SECONDS * 2.0 ** min(quick_deaths, 10), LONGEST_RESTART_DELAY_SECONDS)


@dataclass
class _Slot:
    """A program and its current process."""

    program: Program
    child: Child | None = None
    started_at: float = 0.0
    quick_deaths: int = 0


class Supervisor:
    """Runs the programs of one stack; whoever runs it holds the data directory.

    `on_change` hears every new state, which is then also in the state file; `on_event` hears each death and
    restart as a line of text. Both may raise OSError, as a full disk or a closed terminal does.
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
        self._stages = [[_Slot(program) for program in stage] for stage in stages]
        self._recorder = Recorder(layout, on_change, on_event)
        self._ready_within_seconds = ready_within_seconds
        self._stop_requested = asyncio.Event()
        self._watchers: list[asyncio.Task[None]] = []
        self.state = replace(
            state,
            processes=tuple(ProcessState(slot.program.name, slot.program.url) for slot in self._slots()),
        )

    def _slots(self) -> list[_Slot]:
        return [slot for stage in self._stages for slot in stage]

    def request_stop(self) -> None:
        """End the stack in order; asked a second time, at once."""
        if self._stop_requested.is_set():
            for slot in self._slots():
                if slot.child is not None and slot.child.running:
                    slot.child.kill()
        self._stop_requested.set()

    async def run(self) -> None:
        """Start everything, keep it running until a stop is requested, end everything.

        Raises StartError when a program ends at its first start or is not ready in time; all has ended then too.
        """
        recording = asyncio.create_task(self._recorder.retry())
        try:
            self._set_phase("starting")
            if await self._started():
                self._set_phase("ready")
                await self._stop_requested.wait()
            self._set_phase("stopping")
        except StartError as error:
            self._set_phase("failed", str(error))
            raise
        finally:
            await self._end()
            await _cancel([recording])
        self._set_phase("stopped")

    async def _started(self) -> bool:
        """Start all stages; False when a stop was requested before they were ready."""
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
            tasks = [asyncio.create_task(self._start(slot)) for slot in stage]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _cancel(tasks)

    async def _start(self, slot: _Slot) -> None:
        """Start a program for the first time and watch it from the moment it is ready."""
        await self._spawn(slot)
        await self._await_ready(slot)
        self._watchers.append(asyncio.create_task(self._keep_running(slot)))

    async def _spawn(self, slot: _Slot) -> None:
        log = self._log(slot)
        slot.started_at = time.monotonic()
        try:
            slot.child = await spawn(slot.program.prepare(), log, self._layout.root)
        except (OSError, ServerMissingError) as error:
            raise StartError(f"{slot.program.name} cannot be started: {error}") from error
        self._set_process(slot, identity=slot.child.identity, ready=False, detail="starts")

    def _log(self, slot: _Slot) -> Path:
        return self._layout.logs / f"{slot.program.name}.log"

    async def _await_ready(self, slot: _Slot) -> None:
        assert slot.child is not None  # noqa: S101 - spawned just before
        await until_ready(
            slot.program,
            slot.child,
            self._ready_within_seconds,
            lambda missing: self._set_process(slot, detail=missing),
        )
        self._set_process(slot, ready=True, detail="ready")

    async def _keep_running(self, slot: _Slot) -> None:
        """Restart the program whenever it dies, until cancelled."""
        while slot.child is not None:
            status = await slot.child.wait()
            lived = time.monotonic() - slot.started_at
            slot.quick_deaths = 0 if lived > HEALTHY_SECONDS else slot.quick_deaths + 1
            delay = restart_delay(max(0, slot.quick_deaths - 1))
            self._recorder.say(
                f"{slot.program.name} (pid {slot.child.pid}) ended {exit_text(status)}: starts again in {delay:.1f} s"
            )
            self._set_process(slot, identity=None, ready=False, detail=f"ended {exit_text(status)}")
            await asyncio.sleep(delay)
            await self._restart(slot)

    async def _restart(self, slot: _Slot) -> None:
        restarts = next(process.restarts for process in self.state.processes if process.name == slot.program.name)
        try:
            await self._spawn(slot)
            self._set_process(slot, restarts=restarts + 1)
            await self._await_ready(slot)
            self._recorder.say(f"{slot.program.name} runs again (pid {slot.child.pid if slot.child else 0})")
        except StartError as error:
            self._recorder.say(str(error))
        except Exception as error:  # noqa: BLE001 - a watcher that ended would never start its program again
            self._recorder.say(f"{slot.program.name} could not be restarted: {error!r}")

    async def _end(self) -> None:
        """End everything that was started, last stage first; a stage's programs end side by side."""
        await _cancel(self._watchers)
        for stage in reversed(self._stages):
            await asyncio.gather(*(self._end_one(slot) for slot in stage))
        # What a program left behind, and one whose start was interrupted between the fork and its record.
        await asyncio.to_thread(lambda: end_all(find_marked(self._layout.root), grace_seconds=5))

    async def _end_one(self, slot: _Slot) -> None:
        if slot.child is not None:
            await slot.child.end(slot.program.grace_seconds)
            self._set_process(slot, identity=None, ready=False, detail="ended")

    def _set_phase(self, phase: Phase, error: str | None = None) -> None:
        self._set(replace(self.state, phase=phase, error=error))

    def _set_process(self, slot: _Slot, **changes: object) -> None:
        known = next(process for process in self.state.processes if process.name == slot.program.name)
        self._set(self.state.with_process(replace(known, **changes)))  # type: ignore[arg-type]

    def _set(self, state: State) -> None:
        self.state = state
        self._recorder.record(state)


async def _cancel(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await task
