"""The commands `ordersaga events`: tail and export."""

import typer

from operations.commands.events.export import export
from operations.commands.events.tail import tail

events = typer.Typer(no_args_is_help=True)
events.command("tail")(tail)
events.command("export")(export)
