"""The commands `ordersaga dead-letters`, from list and groups to replay, edit, discard, restore and export."""

import typer

from operations.commands.dead_letters.discard import discard_letters, restore_letters
from operations.commands.dead_letters.edit import edit_letters
from operations.commands.dead_letters.export import export_letters
from operations.commands.dead_letters.listing import groups, list_letters, show
from operations.commands.dead_letters.preview import preview_letters
from operations.commands.dead_letters.replay import outcome, replay_letters

dead_letters = typer.Typer(no_args_is_help=True)
dead_letters.command("list")(list_letters)
dead_letters.command("groups")(groups)
dead_letters.command("show")(show)
dead_letters.command("preview")(preview_letters)
dead_letters.command("replay")(replay_letters)
dead_letters.command("outcome")(outcome)
dead_letters.command("edit")(edit_letters)
dead_letters.command("discard")(discard_letters)
dead_letters.command("restore")(restore_letters)
dead_letters.command("export")(export_letters)
