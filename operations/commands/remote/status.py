"""The command `ordersaga status` with ORDERSAGA_URL: what the console says is away or paused."""

from datetime import datetime
from typing import Any

from rich.console import Console

from operations.commands.remote.api import open_api
from operations.commands.terminal import foreign
from operations.settings import RemoteStack


async def read_state(stack: RemoteStack) -> dict[str, Any]:
    """Return what is away and what is paused; `ok` if nothing is."""
    async with open_api(stack) as api:
        found: dict[str, Any] = await api.get("outages")
    return {"ok": not found["items"] and not found["paused"], **found}


def show_state(state: dict[str, Any], console: Console) -> None:
    """Print a line for each server or service that is away, and for each inbox that is paused."""
    for outage in state["items"]:
        what = f"{outage['name']}: {outage['state']} since {_moment(outage['since'])}: {outage['why']}"
        console.print(f"[red]✗[/] {foreign(what)}", soft_wrap=True)
        more = f"{outage['meaning']} See docs/runbooks/{outage['runbook']}.md."
        console.print(f"  [dim]{foreign(more)}[/]", soft_wrap=True)
    for pause in state["paused"]:
        until = _moment(pause["until"]) if pause["until"] else "it is resumed"
        what = f"{pause['inbox']} is paused since {_moment(pause['since'])} until {until}"
        console.print(f"[yellow]‖[/] {foreign(what)}", soft_wrap=True)
    if state["ok"]:
        console.print("nothing is away or paused")


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
