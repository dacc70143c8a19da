"""What the commands do with dead letters: in the databases and the broker of a stack, or through its console."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from operations.dead_letters.difference import Change
from operations.dead_letters.edit_previewing import EditPreview
from operations.dead_letters.filters import Filters
from operations.dead_letters.group_filters import GroupFilters
from operations.dead_letters.outcome import ReplayOutcome
from operations.dead_letters.patching import Patch
from operations.dead_letters.previewing import SelectionPreview
from operations.dead_letters.records import LetterPage
from operations.dead_letters.replaying import Progress
from operations.dead_letters.service import Decided
from operations.impact.impact import Impact
from operations.impact.of_letters import Concerned
from operations.impact.ranking import RankedPage, Sorting
from operations.settings import RemoteStack, Stack
from shared.database import Document

Act = Literal["replay", "discard", "restore"]


class Listed(NamedTuple):
    """A page of letters, and how many there are on all pages, up to MOST_COUNTED."""

    page: LetterPage
    total: int


class Concern(NamedTuple):
    """What an act on letters is about, and why some letters are foreign, by their ids."""

    about: Concerned
    foreign: Mapping[str, str]


class BodyPreview(NamedTuple):
    """What another body changes in a letter: fields, and identities with their values before and after."""

    changes: Sequence[Change]
    identities: Mapping[str, Sequence[Any]]


class LetterDesk(Protocol):
    """The dead letters of a stack.

    Methods raise NotPossibleError for what cannot be done, ValueError for wrong input, and UnreachableError.
    """

    @property
    def stack(self) -> Stack | RemoteStack:
        """The stack."""

    async def resolve(self, filters: Filters) -> Filters:
        """Complete ids that were given by their first characters."""

    async def freeze(self, filters: Filters) -> Filters:
        """Return what an act is about: ids are completed, and what fails from now on does not match."""

    async def page(self, filters: Filters, *, limit: int, cursor: str | None) -> Listed:
        """Return a page of letters."""

    async def letter(self, letter_id: str) -> Document:
        """Return a whole letter, by its id or its first characters."""

    async def impact(self, letter: Document) -> Impact:
        """Return what the group of a letter means for customers."""

    def export(self, filters: Filters, *, masked: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield each selected letter as a JSON document; `masked`, without tokens and personal fields."""

    async def groups(self, filters: GroupFilters, *, by: Sorting, limit: int, skip: int) -> RankedPage:
        """Return groups with what they mean for customers."""

    async def preview(self, filters: Filters, body: bytes | None) -> SelectionPreview:
        """Return what a replay would do; of one letter, also with another body."""

    async def preview_patch(self, filters: Filters, patch: Patch, samples: int) -> EditPreview:
        """Return what a patch would do, without tokens and personal fields."""

    async def preview_body(self, letter: str, body: bytes, unlocked: Sequence[str]) -> BodyPreview:
        """Return what another body changes. Raises InvalidBodyError."""

    async def concern(self, act: Act, filters: Filters) -> Concern:
        """Return whom and what an act on letters concerns."""

    async def needs_reason(self, filters: Filters) -> bool:
        """Return whether a replay needs a reason."""

    async def replay(self, filters: Filters, *, why: str, rate: float, careful: bool) -> str:
        """Start a replay and return its id; if it needs a second person, ask for one and end the command."""

    async def edit(self, filters: Filters, patch: Patch, *, why: str, rate: float, careful: bool) -> str:
        """Start an edit of many letters and return the id of its replay; a second person is asked as by `replay`."""

    async def edit_one(self, letter: str, body: bytes, *, why: str, unlocked: Sequence[str]) -> str:
        """Start the replay of a letter with another body, and return its id."""

    async def decide(self, act: Act, filters: Filters, *, why: str) -> Decided:
        """Discard or restore letters, and return how many; a second person is asked as by `replay`."""

    async def abandoned(self) -> list[str]:
        """Return the replays that this command has to continue."""

    async def find_replay(self, replay_id: str) -> Document | None:
        """Return the record of a replay."""

    async def follow(self, replay_id: str, on_progress: Progress) -> Document:
        """Run or watch a replay until it has ended, and return its record."""

    async def outcome(self, replay_id: str) -> ReplayOutcome:
        """Count the outcomes of a replay's letters."""

    async def await_outcome(
        self, replay_id: str, within: float, on_progress: Callable[[ReplayOutcome], None]
    ) -> ReplayOutcome:
        """Wait up to `within` seconds until every letter of an ended replay has an outcome."""
