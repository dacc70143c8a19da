"""A stack whose supervisor is a process in the background.

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
from operations.stack.run import CANNOT_RUN, Options, View, cannot_run, run_stack
from operations.stack.services import import_path
from operations.stack.start import StartError
from operations.stack.state import State, read_state_if_readable
from shared.printable import printable

POLL_INTERVAL_SECONDS = 0.1


def start_in_background(options: Options, view: View, environment: Mapping[str, str] = os.environ) -> State:
    """Start a supervisor in a session of its own and return the stack's state once all of it is ready.

    The view hears the changes until then. Raises StartError with the reason when the supervisor ends first.
    """
    layout = Layout(options.root)
    supervisor, offset = _start_supervisor(options, layout, environment)
    try:
        return _await_ready(layout, supervisor, view, offset)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise


def _start_supervisor(
    options: Options, layout: Layout, environment: Mapping[str, str]
) -> tuple["subprocess.Popen[bytes]", int]:
    """Return the process and where its part of the log begins."""
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


def _await_ready(layout: Layout, supervisor: "subprocess.Popen[bytes]", view: View, log_offset: int) -> State:
    while supervisor.poll() is None:
        state = read_state_if_readable(layout)  # what a former supervisor left may be anything
        if state.supervisor is not None and state.supervisor.pid == supervisor.pid:
            view.change(state)
            if state.phase == "ready":
                return state
        time.sleep(POLL_INTERVAL_SECONDS)
    with layout.supervisor_log.open("rb") as log:
        log.seek(log_offset)
        lines = log.read().decode(errors="replace").strip().splitlines()
    raise StartError("\n".join(lines[-8:]) or f"the supervisor ended with exit status {supervisor.returncode}")


class _LogView:
    """Writes the events with their time to stdout, which is `supervisor.log`."""

    def change(self, state: State) -> None:
        """Leave it to the state file."""

    def event(self, text: str) -> None:
        """Write the event down; raises OSError when it is not written."""
        line = f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {printable(text)}\n"
        # Not through a buffer, which would keep what could not be written and write it once more.
        os.write(sys.stdout.fileno(), line.encode(errors="replace"))


def main() -> None:
    """Run the stack that the options, this program's one argument, describe."""
    options = json.loads(sys.argv[1])
    options |= {"root": Path(options["root"]), "services": tuple(options["services"])}
    try:
        run_stack(Options(**options), _LogView())
    except CANNOT_RUN as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
