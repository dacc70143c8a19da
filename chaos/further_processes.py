"""Further processes of the services of a running stack: `ordersaga up` starts one of each."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from chaos.clocks import FakedClock
from operations.stack.layout import Layout, numbered
from operations.stack.ports import PortClaims
from operations.stack.processes import Child, find, spawn
from operations.stack.program import Command
from operations.stack.services import ServiceProgram
from operations.stack.start import StackStartError, wait_until_ready
from operations.stack.state import ProcessState, read_state
from shared.services import PROCESSES

READY_WITHIN = 300.0
RESTART_AFTER = 0.2


class FurtherProcess:
    """One more process of a service, with the settings of the first, and started again when it dies."""

    def __init__(self, directory: Path, service: str, number: int, port: int, *, own_clock: bool = False) -> None:
        """Raise LookupError if the stack does not run this service. With a clock of its own, it can jump."""
        self._layout = Layout(directory)
        state = read_state(self._layout)
        identity = next(process.identity for process in state.processes if process.name == service)
        first = find(identity) if identity else None
        if first is None:
            raise LookupError(f"{service} does not run")
        self._program = ServiceProgram(service, port, first.environ())
        self._name = numbered(service, number)
        self.clock = FakedClock(self._layout.root / "clocks" / self._name) if own_clock else None
        self._child: Child | None = None
        self.ready = asyncio.Event()

    @property
    def state(self) -> ProcessState:
        """Its process and whether it is ready."""
        identity = self._child.identity if self._child and self._child.running else None
        return ProcessState(self._name, self._program.url, identity, self.ready.is_set())

    def _command(self) -> Command:
        command = self._program.prepare()
        if self.clock is None:
            return command
        return replace(command, environment={**command.environment, **self.clock.environment()})

    async def run(self) -> None:
        """Keep it running, until cancelled."""
        log = self._layout.logs / f"{self._name}.log"
        while True:
            self._child = child = await spawn(self._command(), log, self._layout.root)
            try:
                with contextlib.suppress(StackStartError):
                    await wait_until_ready(self._program, child, READY_WITHIN)
                    self.ready.set()
                await child.wait()
            except asyncio.CancelledError:
                await child.end(self._program.grace_seconds)
                raise
            finally:
                self.ready.clear()
            await asyncio.sleep(RESTART_AFTER)


@contextlib.asynccontextmanager
async def further_processes(
    directory: Path, number: int, services: Sequence[str] = tuple(PROCESSES), *, own_clocks: bool = False
) -> AsyncIterator[dict[str, FurtherProcess]]:
    """Run `number` processes of each of the services rather than one; yield the further ones by name, all ready.

    Raises TimeoutError if they do not get ready.
    """
    with PortClaims() as claims:
        further = {
            numbered(service, each): FurtherProcess(directory, service, each, claims.claim_free(), own_clock=own_clocks)
            for service in services
            for each in range(2, number + 1)
        }
        tasks = [asyncio.create_task(process.run()) for process in further.values()]
        try:
            async with asyncio.timeout(READY_WITHIN):
                await asyncio.gather(*(process.ready.wait() for process in further.values()))
            yield further
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
