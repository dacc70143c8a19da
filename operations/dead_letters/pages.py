"""The letters that a replay takes together, and what its patch makes of each. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from operations.dead_letters.patching import Edit, LeftOut, Patch, edited
from shared.database import Document

MOST_NAMED = 200
"""The letters that a replay names as left out; it counts all."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of letters in the order of a replay: those that it looks at, and those of them that it sends.

    If the replay has a patch, `edits` are the bodies that it makes, by letter id, and `left` says of the others why
    they are left out.
    """

    looked_at: Sequence[Document] = ()
    letters: Sequence[Document] = ()
    edits: Mapping[str, Edit] | None = None
    left: Sequence[tuple[str, LeftOut]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing more to look at."""
        return not self.looked_at

    def progress(self, replay: Document) -> Document:
        """Return the fields of the replay's record that say how far it is after this page."""
        last = self.looked_at[-1]
        behind: Document = {"behind": [last["lastFailedAt"], last["_id"]]}
        if not self.left:
            return behind
        counts = Counter({entry["reason"]: entry["letters"] for entry in replay["left"]})
        counts.update(left_out.reason for _, left_out in self.left)
        named = [{"letter": letter_id, "reason": left_out.reason} for letter_id, left_out in self.left]
        return behind | {
            "left": [{"reason": reason, "letters": number} for reason, number in counts.most_common()],
            "leftLetters": [*replay["leftLetters"], *named][:MOST_NAMED],
        }


def patched_page(letters: Sequence[Document], patch: Patch, most: int) -> Page:
    """Return the page of the first letters of which the patch changes up to `most`; whole letters are given."""
    looked_at: list[Document] = []
    taken: list[Document] = []
    edits: dict[str, Edit] = {}
    left: list[tuple[str, LeftOut]] = []
    for letter in letters:
        looked_at.append(letter)
        outcome = edited(letter, patch)
        if isinstance(outcome, LeftOut):
            left.append((letter["_id"], outcome))
            continue
        taken.append(letter)
        edits[letter["_id"]] = outcome
        if len(taken) == most:
            break
    return Page(looked_at, taken, edits, left)
