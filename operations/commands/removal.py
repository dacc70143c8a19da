"""What the commands that remove orders share: the age that the user types, and the refusal over dead letters."""

from datetime import timedelta

import typer

from operations.cleanup.age import read_age
from operations.commands.terminal import print_error, print_json
from operations.dead_letters.lookup import DeadLetterLookup
from operations.reading.broker import count_messages
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.topology import DEAD_LETTERS

IGNORE_DEAD_LETTERS = "Run even if there are dead letters; the orders of recorded ones stay."
"""The help of the option."""


def age_of(text: str) -> timedelta:
    """Parse the value of --older-than. Raises BadParameter."""
    try:
        return read_age(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from error


async def refusal(stack: Stack) -> str | None:
    """Return the reason for which nothing may be deleted now, None if there is none. Raises UnreachableError."""
    letters = ((await count_messages(stack.amqp_url, [DEAD_LETTERS]))[DEAD_LETTERS] or 0) + await _recorded(stack)
    if not letters:
        return None
    return (
        f"there {'is 1 dead letter' if letters == 1 else f'are {letters} dead letters'}. Replayed after the deletion, "
        "a letter would not find the records of its order. Replay or discard first, or add --ignore-dead-letters."
    )


async def _recorded(stack: Stack) -> int:
    """Count the recorded dead letters that may still be replayed or are being replayed."""
    async with open_mongodb(stack.mongodb_url, purpose="the count of dead letters", name="ordersaga-removal") as client:
        return await DeadLetterLookup(client, stack.database_prefix).count_open()


def refuse(reason: str, *, as_json_document: bool) -> None:
    """Say that nothing was deleted, and end with exit status 1."""
    if as_json_document:
        print_json({"refused": reason})
    else:
        print_error(f"Nothing was deleted: {reason}")
    raise typer.Exit(1)
