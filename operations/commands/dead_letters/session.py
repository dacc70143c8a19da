"""The dead letters that a command acts on, and its prompts and errors."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NoReturn, TypeVar

import typer
import uvloop

from operations.commands.dead_letters.desk import Act, LetterDesk
from operations.commands.dead_letters.local_desk import LocalDesk
from operations.commands.dead_letters.remote_desk import RemoteDesk
from operations.commands.orders.display import totals_in_words
from operations.commands.permission import NotPermittedError, require_permission
from operations.commands.remote.api import open_api
from operations.commands.target import chosen_target
from operations.commands.terminal import counted, print_error
from operations.dead_letters.connection import connect
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters
from operations.dead_letters.masking import mask_letter
from operations.dead_letters.replays import NotPossibleError
from operations.errors import UnreachableError
from operations.impact.of_letters import Concerned
from operations.impact.wording import money_in_words, without_order_in_words
from operations.settings import RemoteStack
from operations.stack.layout import REMOTE_URL_VARIABLE
from shared.access.permissions import Permission
from shared.database import Document

T = TypeVar("T")


def run(work: Callable[[LetterDesk], Awaitable[T]], *, only_reads: bool = False) -> T:
    """Connect to the stack, do the work and translate its errors to exit statuses.

    Work that only reads is done without the broker too.
    """

    async def connected() -> T:
        async with _opened(only_reads) as desk:
            return await work(desk)

    try:
        return uvloop.run(connected())
    except (NotPossibleError, NotPermittedError) as error:
        _fail(str(error))
    except InvalidBodyError as error:
        _fail("the body is not valid:\n" + "\n".join(f"  {field}: {message}" for field, message in error.errors))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@contextlib.asynccontextmanager
async def _opened(only_reads: bool) -> AsyncIterator[LetterDesk]:
    target = chosen_target()
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            yield RemoteDesk(api)
    else:
        async with connect(target, _say_what_is_missing if only_reads else None) as connection:
            yield LocalDesk(connection)


def _say_what_is_missing(error: UnreachableError) -> None:
    print_error(f"only recorded dead letters are shown, not those that wait in the broker. {error}")


def _fail(reason: str) -> NoReturn:
    print_error(reason)
    raise typer.Exit(1)


async def require_unmasked(desk: LetterDesk, purpose: str) -> None:
    """Check that the caller may see tokens and personal fields, for which `purpose` shows them.

    Raises NotPermittedError, or UnreachableError if no service can confirm it.
    """
    await require_permission(desk.stack, Permission.LETTERS_EDIT, purpose)


async def visible(desk: LetterDesk, letters: Sequence[Document], unmasked: bool) -> list[Document]:
    """Return letters as they are shown: without tokens and personal fields, unless `unmasked` is set and allowed.

    Raises what `require_unmasked` raises.
    """
    if not unmasked:
        return [mask_letter(letter) for letter in letters]
    await require_unmasked(desk, "--unmasked")
    return list(letters)


async def confirm(desk: LetterDesk, filters: Filters, act: Act, yes: bool) -> None:
    """Ask for confirmation of an act on letters unless `yes` is set, after naming the foreign ones of a replay.

    Raises NotPossibleError if the act is possible for none of them.
    """
    concern = await desk.concern(act, filters)
    for letter, why in concern.foreign.items():
        what = "foreign" if filters.ids else "foreign, left out (replay it by its id)"
        print_error(f"{letter} is {what}: {why}")
    if not concern.about.letters:
        raise NotPossibleError(f"there is no matching dead letter to {act}")
    question = f"{act.capitalize()} {counted(concern.about.letters, 'dead letters')} ({in_words(concern.about)})?"
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)


def reason_given(desk: LetterDesk, why: str | None, yes: bool) -> str:
    """Return the reason for an act that needs one, which is asked for if it is not given."""
    if why is None and yes and isinstance(desk.stack, RemoteStack):
        raise typer.BadParameter(f"required with --yes and {REMOTE_URL_VARIABLE}", param_hint="--why")
    return why if why is not None else str(typer.prompt("Reason", err=True))


def in_words(about: Concerned) -> str:
    """Return what letters concern, such as "2 orders of 1 customer, 25.00 EUR; 12.50 EUR at stake"."""
    impact = about.impact
    totals = ("" if impact.complete else "at least ") + totals_in_words(impact.total)
    return "; ".join(part for part in (totals, money_in_words(impact), without_order_in_words(impact)) if part)
