"""What a patch would make of a selection of letters, and what a replay of them would then do; it writes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from operations.dead_letters.difference import Change, differences
from operations.dead_letters.effects import Effect, Preview
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter import current_body
from operations.dead_letters.patching import Edit, LeftOut, Patch, edited
from operations.dead_letters.preview import ToPreview, message_of
from operations.dead_letters.previewing import MOST_PREVIEWED, ReplayPreviews, count_effects
from operations.dead_letters.records import LetterRecords
from shared.database import Database, Document

MOST_LOOKED_AT = 10_000
"""The most letters to which a preview applies the patch, in the order in which a replay sends them."""

MOST_NAMED = 100
"""The letters that are left out and named; all are counted."""


class Sample(NamedTuple):
    """What the patch makes of one letter: what it changes and what a replay would then do, or why it does nothing."""

    letter: str
    order: str | None
    changes: Sequence[Change] = ()
    preview: Preview | None = None
    left: LeftOut | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the sample as a JSON document shows it."""
        return {
            "id": self.letter,
            "order": self.order,
            "changes": [change.as_json() for change in self.changes],
            "replay": None if self.preview is None else self.preview.in_words(),
            "leftOut": None if self.left is None else self.left.reason,
        }


@dataclass(frozen=True, slots=True)
class EditPreview:
    """What a patch would do with the first `looked_at` of `total` letters.

    `left` counts the letters that it leaves as they are, by reason, and `effects` what a replay of the others would do,
    of up to MOST_PREVIEWED.
    """

    total: int
    looked_at: int
    changed: int
    left: Sequence[tuple[str, int]]
    effects: Sequence[tuple[str, Effect, int]]
    samples: Sequence[Sample]
    left_out: Sequence[Sample]

    @property
    def previewed(self) -> int:
        """The number of letters of which it is known what a replay would do."""
        return sum(number for _, _, number in self.effects)

    @property
    def summary(self) -> str:
        """What a confirmation is about, to be compared with what is so when it comes."""
        left = "; ".join(f"{number} {reason}" for reason, number in sorted(self.left))
        return f"{self.total} {self.looked_at} {self.changed}; {left}"

    def as_json(self) -> dict[str, Any]:
        """Return the preview as a JSON document shows it."""
        return {
            "total": self.total,
            "lookedAt": self.looked_at,
            "changed": self.changed,
            "leftOut": [{"reason": reason, "letters": number} for reason, number in self.left],
            "replays": [{"effect": effect, "text": words, "letters": n} for words, effect, n in self.effects],
            "samples": [sample.as_json() for sample in self.samples],
        }


def edit_preview_from_json(document: Mapping[str, Any]) -> EditPreview:
    """Return the preview that a JSON document shows; the letters that are left out are not named in it."""
    return EditPreview(
        total=document["total"],
        looked_at=document["lookedAt"],
        changed=document["changed"],
        left=[(each["reason"], each["letters"]) for each in document["leftOut"]],
        effects=[(each["text"], Effect(each["effect"]), each["letters"]) for each in document["replays"]],
        samples=[_sample_from_json(each) for each in document["samples"]],
        left_out=[],
    )


def _sample_from_json(document: Mapping[str, Any]) -> Sample:
    # In words, this is what the document had: only an effect of another kind is named in front of them.
    preview = None if document["replay"] is None else Preview(Effect.CHANGES, document["replay"])
    changes = [Change(**each) for each in document["changes"]]
    return Sample(document["id"], document["order"], changes, preview)


class EditPreviews:
    """Previews of edits of many letters of a stack. Lets the driver's errors out."""

    def __init__(self, database: Database, previews: ReplayPreviews) -> None:
        self._letters = LetterRecords(database)
        self._previews = previews

    async def of_selection(self, filters: Filters, patch: Patch, *, samples: int = 5, masked: bool) -> EditPreview:
        """Return what the patch would do with the selected letters, with the changes of the first ones.

        `masked` hides tokens and personal fields in them.
        """
        messages: list[ToPreview] = []
        shown: list[tuple[Document, Edit]] = []
        counts, named, changed = Counter[str](), list[Sample](), 0
        async for letter in self._letters.to_replay(filters, MOST_LOOKED_AT):
            outcome = edited(letter, patch)
            if isinstance(outcome, LeftOut):
                counts[outcome.reason] += 1
                named += [Sample(letter["_id"], letter["orderId"], left=outcome)][: MOST_NAMED - len(named)]
                continue
            changed += 1
            if len(messages) < MOST_PREVIEWED:
                messages.append(message_of(letter, outcome.body))
            if len(shown) < samples:
                shown.append((letter, outcome))
        found = await self._previews.of_messages(messages)
        return EditPreview(
            total=await self._letters.count_replayable(filters),
            looked_at=changed + counts.total(),
            changed=changed,
            left=counts.most_common(),
            effects=count_effects(found),
            samples=[
                _sample(letter, edit, preview, masked) for (letter, edit), preview in zip(shown, found, strict=False)
            ],
            left_out=named,
        )

    async def of_letter(self, letter_id: str, patch: Patch, *, masked: bool) -> Sample | None:
        """Return what the patch would do with one letter, None if there is no such letter."""
        letter = await self._letters.without_big_body(letter_id)
        if letter is None:
            return None
        outcome = edited(letter, patch)
        if isinstance(outcome, LeftOut):
            return Sample(letter_id, letter["orderId"], left=outcome)
        preview = await self._previews.of_letter(letter, outcome.body)
        return _sample(letter, outcome, preview, masked)


def _sample(letter: Document, edit: Edit, preview: Preview, masked: bool) -> Sample:
    changes = differences(current_body(letter), edit.body, masked=masked)
    return Sample(letter["_id"], letter["orderId"], changes, preview)
