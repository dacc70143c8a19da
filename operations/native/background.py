"""A stack whose supervisor is a process in the background.

`python -m operations.native.background '<options as JSON>'` is that process; its events go to `supervisor.log`.
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

from operations.native.layout import Layout
from operations.native.services import import_path
from operations.native.stack import CANNOT_RUN, Options, View, run_stack
from operations.native.start import StartError
from operations.native.state import State, read_state

POLL_INTERVAL_SECONDS = 0.1


def start_in_background(options: Options, view: View, environment: Mapping[str, str] = os.environ) -> State:
    """Start a supervisor in a session of its own and return the stack's state once all of it is ready.

    The view hears the changes until then. Raises StartError with the reason when the supervisor ends first.
    """
    layout = Layout(options.root)
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with layout.supervisor_log.open("ab") as log:
        offset = log.tell()
        supervisor = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-P", "-m", __name__, json.dumps(asdict(options), default=str)],
            env={**environment, "PYTHONPATH": import_path(environment)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _await_ready(layout, supervisor, view, offset)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise


def _await_ready(layout: Layout, supervisor: "subprocess.Popen[bytes]", view: View, log_offset: int) -> State:
    while supervisor.poll() is None:
        state = read_state(layout)
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
        """Write the event down."""
        print(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {text}", flush=True)  # noqa: T201


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
