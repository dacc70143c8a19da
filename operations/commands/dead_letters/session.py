"""The connection of a command to the dead letters, and its prompts and errors."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NoReturn, TypeVar

import typer
import uvloop

from operations.commands.orders.display import totals_in_words
from operations.commands.permission import NotPermittedError, require_permission
from operations.commands.target import chosen_stack
from operations.commands.terminal import counted, print_error
from operations.dead_letters.connection import DeadLetterConnection, connect
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters, replayable, until_now
from operations.dead_letters.letter import why_foreign
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.replays import NotPossibleError
from operations.errors import UnreachableError
from operations.impact.of_letters import Concerned, concerned
from operations.impact.wording import money_in_words, without_order_in_words
from shared.access.permissions import Permission
from shared.clock import utc_now
from shared.database import Document

T = TypeVar("T")


def run(work: Callable[[DeadLetterConnection], Awaitable[T]], *, only_reads: bool = False) -> T:
    """Connect to the stack, do the work and translate its errors to exit statuses.

    Work that only reads is done without the broker too.
    """

    async def connected() -> T:
        async with connect(chosen_stack(), _say_what_is_missing if only_reads else None) as connection:
            return await work(connection)

    try:
        return uvloop.run(connected())
    except (NotPossibleError, NotPermittedError) as error:
        _fail(str(error))
    except InvalidBodyError as error:
        _fail("the body is not valid:\n" + "\n".join(f"  {field}: {message}" for field, message in error.errors))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _say_what_is_missing(error: UnreachableError) -> None:
    print_error(f"only recorded dead letters are shown, not those that wait in the broker. {error}")


def _fail(reason: str) -> NoReturn:
    print_error(reason)
    raise typer.Exit(1)


async def resolve_ids(connection: DeadLetterConnection, filters: Filters) -> Filters:
    """Complete ids that were given by their first characters. Raises NotPossibleError for unknown ones."""
    return replace(filters, ids=tuple([await connection.service.resolve(prefix) for prefix in filters.ids]))


async def freeze(connection: DeadLetterConnection, filters: Filters) -> Filters:
    """Return what an act is about: ids are completed, and what fails from now on does not match: nobody has seen it.

    Raises NotPossibleError for unknown ids.
    """
    return until_now(await resolve_ids(connection, filters), utc_now())


async def require_unmasked(connection: DeadLetterConnection, purpose: str) -> None:
    """Check that the caller may see tokens and personal fields, for which `purpose` shows them.

    Raises NotPermittedError, or UnreachableError if no service can confirm it.
    """
    await require_permission(connection.stack, Permission.LETTERS_EDIT, purpose)


async def visible(connection: DeadLetterConnection, letters: Sequence[Document], unmasked: bool) -> list[Document]:
    """Return letters as they are shown: without tokens and personal fields, unless `unmasked` is set and allowed.

    Raises what `require_unmasked` raises.
    """
    if not unmasked:
        return [mask_letter(letter) for letter in letters]
    await require_unmasked(connection, "--unmasked")
    return list(letters)


async def confirm(connection: DeadLetterConnection, letters: Document, action: str, yes: bool) -> None:
    """Ask for confirmation of an act on the letters of a query unless `yes` is set.

    Raises NotPossibleError if there is none.
    """
    found = await concerned(connection.database.client, connection.stack.database_prefix, letters)
    if not found.letters:
        raise NotPossibleError(f"there is no matching dead letter to {action.lower()}")
    question = f"{action} {counted(found.letters, 'dead letters')} ({_about(found)})?"
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)


async def concerning(connection: DeadLetterConnection, letters: Document) -> str:
    """Return what the letters of a query concern, in words."""
    return _about(await concerned(connection.database.client, connection.stack.database_prefix, letters))


def _about(found: Concerned) -> str:
    """Return what letters concern, such as "2 orders of 1 customer, 25.00 EUR; 12.50 EUR at stake"."""
    impact = found.impact
    totals = ("" if impact.complete else "at least ") + totals_in_words(impact.total)
    return "; ".join(part for part in (totals, money_in_words(impact), without_order_in_words(impact)) if part)


async def confirm_replay(connection: DeadLetterConnection, filters: Filters, yes: bool) -> None:
    """Name the foreign letters of a selection, then ask for confirmation unless `yes` is set.

    Raises NotPossibleError if no letter can be replayed.
    """
    for letter in await connection.service.foreign(filters):
        what = "foreign" if filters.ids else "foreign, left out (replay it by its id)"
        print_error(f"{letter['_id']} is {what}: {why_foreign(letter)}")
    await confirm(connection, replayable(filters), "Replay", yes)
