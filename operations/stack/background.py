"""Runs a stack whose supervisor is a background process.

`python -m operations.stack.background '<options as JSON>'` is that process; its events go to `supervisor.log`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from operations.stack.files import open_private
from operations.stack.layout import Layout
from operations.stack.run import CANNOT_RUN, StackListener, StackOptions, cannot_run, run_stack
from operations.stack.services import import_path
from operations.stack.start import StackStartError
from operations.stack.state import State, read_state_if_readable
from shared.printable import printable

POLL_INTERVAL_SECONDS = 0.1


def start_in_background(
    options: StackOptions, listener: StackListener, environment: Mapping[str, str] = os.environ
) -> State:
    """Start a supervisor in a separate session and return the stack's state once everything is ready.

    Until then the listener receives the changes. Raises StackStartError with the reason if the supervisor ends first.
    """
    layout = Layout(options.root)
    supervisor, offset = _start_supervisor(options, layout, environment)
    try:
        return _await_ready(layout, supervisor, listener, offset)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise


def _start_supervisor(
    options: StackOptions, layout: Layout, environment: Mapping[str, str]
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start the supervisor; return the process and the offset of its part of the log."""
    try:
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_private(layout.supervisor_log, "ab") as log:
            offset = log.tell()
            supervisor = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-P", "-m", __name__, json.dumps(asdict(options), default=str)],
                env={**environment, "PYTHONPATH": import_path(environment)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return supervisor, offset
    except OSError as error:
        raise cannot_run(layout, error) from error


def _await_ready(
    layout: Layout, supervisor: "subprocess.Popen[bytes]", listener: StackListener, log_offset: int
) -> State:
    while supervisor.poll() is None:
        state = read_state_if_readable(layout)  # an earlier supervisor may have left a damaged one
        if state.supervisor is not None and state.supervisor.pid == supervisor.pid:
            listener.on_change(state)
            if state.phase == "ready":
                return state
        time.sleep(POLL_INTERVAL_SECONDS)
    with layout.supervisor_log.open("rb") as log:
        log.seek(log_offset)
        lines = log.read().decode(errors="replace").strip().splitlines()
    raise StackStartError("\n".join(lines[-8:]) or f"the supervisor ended with exit status {supervisor.returncode}")


class _LogListener:
    """Writes events with their time to stdout, which is `supervisor.log`."""

    def on_change(self, state: State) -> None:
        """Ignore the new state: the state file has it."""

    def on_event(self, text: str) -> None:
        """Write the event; raises OSError if that fails."""
        line = f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {printable(text)}\n"
        # Unbuffered: a buffer would keep text that could not be written and write it a second time.
        os.write(sys.stdout.fileno(), line.encode(errors="replace"))


def main() -> None:
    """Run a stack with the options in this program's only argument."""
    options = json.loads(sys.argv[1])
    options |= {"root": Path(options["root"]), "services": tuple(options["services"])}
    try:
        run_stack(StackOptions(**options), _LogListener())
    except CANNOT_RUN as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
