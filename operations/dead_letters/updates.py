"""The changes of a letter: it fails again, is handled, claimed for a replay, sent, or found to be unsendable. Pure.

Every update names in its filter the state that it starts from.
"""

from datetime import datetime
from typing import Any

from pymongo import UpdateOne

from operations.dead_letters.filters import claimable
from operations.dead_letters.letter import Failure, clean, failed_fields, replay_message_id, words
from operations.dead_letters.masking import mask_text
from operations.dead_letters.patching import Edit
from operations.dead_letters.status import DEAD, DISCARDED, HANDLED, OPEN, PENDING, REPLAYING
from shared.contracts import DeadLetterHandled
from shared.database import Document

MOST_REPLAYS_KEPT = 100
"""The newest replays, and earlier failures, that a letter keeps: its record must not outgrow what MongoDB stores."""

LONGEST_ERROR = 1000


def failed_again(failure: Failure, letter: Document, now: datetime) -> list[UpdateOne]:
    """Return a replay to its letter as a dead letter; the letter is dead again if this was its last replay.

    `letter` has the failure before it, which stays with the letter: its group keeps its history.
    """
    outcome: Document = {
        "replays.$.outcome": DEAD,
        "replays.$.outcomeAt": now,
        "replays.$.error": {"type": failure.error.type, "message": failure.error.message},
    }
    replay = {"$elemMatch": {"messageId": failure.message_id, "outcome": PENDING}}
    last = {"_id": failure.replay_of, "lastReplay": failure.message_id, "status": {"$in": OPEN}, "replays": replay}
    changed = failed_fields(failure)
    attempts = changed.pop("attempts")
    new_words = words(f"{failure.error.type} {mask_text(failure.error.message)}")[:20]
    began = letter["lastFailedAt"] if letter.get("failures") else letter["firstFailedAt"]
    before = {"fingerprint": letter["fingerprint"], "first": began, "at": letter["lastFailedAt"]}
    return [
        UpdateOne(
            last,
            {
                "$set": outcome | changed | {"status": DEAD},
                "$unset": {"claimedBy": True},
                "$inc": {"attempts": attempts, "changes": 1},
                "$addToSet": {"words": {"$each": new_words}},
                "$push": {"failures": {"$each": [before], "$slice": -MOST_REPLAYS_KEPT}},
            },
        ),
        UpdateOne(_not_decided_by(str(failure.replay_of), failure.message_id) | {"replays": replay}, {"$set": outcome}),
    ]


def handled(notice: DeadLetterHandled, now: datetime) -> list[UpdateOne]:
    """Note that a replay was handled; the letter is handled too if this was its last replay."""
    outcome = {"replays.$.outcome": HANDLED, "replays.$.outcomeAt": now}
    replay = {"$elemMatch": {"messageId": notice.message_id, "outcome": {"$ne": HANDLED}}}
    last = {"_id": notice.letter_id, "lastReplay": notice.message_id, "status": {"$in": OPEN}, "replays": replay}
    return [
        UpdateOne(last, {"$set": outcome | {"status": HANDLED}, "$unset": {"claimedBy": True}, "$inc": {"changes": 1}}),
        UpdateOne(_not_decided_by(notice.letter_id, notice.message_id) | {"replays": replay}, {"$set": outcome}),
    ]


def claimed(letter: Document, replay: Document, now: datetime, edit: Edit | None = None) -> UpdateOne:
    """Claim a letter for a replay, unless the replay has claimed it before or the letter has changed since.

    `edit` is what the replay's patch makes of the letter, as it was read.
    """
    if edit is None and replay["edited"] is not None:
        edit = Edit(bytes(replay["edited"]), replay.get("identities", {}))
    letter_id = letter["_id"]
    own_id = replay_message_id(replay["_id"], letter_id)
    entry: Document = {
        "replay": replay["_id"],
        "group": letter["fingerprint"],
        "at": now,
        "by": replay["by"],
        "why": replay["why"],
        "edited": edit is not None,
        "messageId": own_id,
        "outcome": PENDING,
        "outcomeAt": None,
    }
    pushed: Document = {"replays": {"$each": [entry], "$slice": -MOST_REPLAYS_KEPT}}
    found_by: list[str] = []
    changed: Document = {"status": REPLAYING, "claimedBy": replay["_id"], "lastReplay": own_id}
    claimable_now = {"_id": letter_id} | claimable(replay) | {"replays.replay": {"$ne": replay["_id"]}}
    if edit is not None:
        written: Document = {"at": now, "by": replay["by"], "why": replay["why"], "body": edit.body}
        if edit.identities:
            written["identities"] = edit.identities
            changed |= (subject := _subject(edit))
            found_by = words(" ".join(subject.values()))
        pushed["edits"] = written
    if "patch" in replay:
        claimable_now["changes"] = letter["changes"]
    return UpdateOne(
        claimable_now,
        {
            "$set": changed,
            "$push": pushed,
            "$addToSet": {"words": {"$each": found_by}},
            "$inc": {"changes": 1},
        },
    )


def _subject(edit: Edit) -> Document:
    """Return the fields of a letter that name the order which its message is about after an edit."""
    order = edit.identities.get("orderId")
    return {} if order is None else {"orderId": order[1], "correlationId": order[1]}


def sent(letter: Document) -> UpdateOne:
    """Note that a claimed letter was sent."""
    return UpdateOne(_claimed_as(letter), {"$set": {"status": PENDING}, "$unset": {"claimedBy": True}})


def unsendable(letter: Document, error: Exception, now: datetime) -> UpdateOne:
    """Note that a claimed letter cannot be sent: it is dead, as before."""
    outcome: dict[str, Any] = {
        "replays.$.outcome": DEAD,
        "replays.$.outcomeAt": now,
        "replays.$.error": {"type": type(error).__name__, "message": clean(str(error)[:LONGEST_ERROR])},
        "replays.$.unsent": True,
    }
    return UpdateOne(
        _claimed_as(letter) | {"replays": {"$elemMatch": {"messageId": letter["lastReplay"]}}},
        {"$set": outcome | {"status": DEAD}, "$unset": {"claimedBy": True}, "$inc": {"changes": 1}},
    )


def discarded(entry: Document) -> Document:
    """Return the update that sets letters aside; the entry says who does it, when and why."""
    return {"$set": {"status": DISCARDED, "discarded": entry}, "$inc": {"changes": 1}}


def restored(entry: Document) -> list[Document]:
    """Return the update that takes discarded letters back; the entry says who does it, when and why.

    A letter that was discarded while the outcome of its last replay was not known gets the status that goes with it:
    one that was handled in the meantime must not wait for a replay.
    """
    last = {"$filter": {"input": "$replays", "cond": {"$eq": ["$$this.messageId", "$lastReplay"]}}}
    outcome = {"$arrayElemAt": [{"$map": {"input": last, "in": "$$this.outcome"}}, -1]}
    history = {"$slice": [{"$ifNull": ["$restored", []]}, -(MOST_REPLAYS_KEPT - 1)]}
    with_discard = {"$mergeObjects": [{"$literal": entry}, {"discarded": "$discarded"}]}
    return [
        {
            "$set": {
                "status": {"$ifNull": [outcome, DEAD]},
                "discarded": None,
                "restored": {"$concatArrays": [history, [with_discard]]},
                "changes": {"$add": ["$changes", 1]},
            }
        }
    ]


def _claimed_as(letter: Document) -> Document:
    return {"_id": letter["_id"], "status": REPLAYING, "lastReplay": letter["lastReplay"]}


def _not_decided_by(letter_id: str, message_id: str) -> Document:
    """Match the letter if the outcome of that replay no longer decides its status."""
    return {"_id": letter_id, "$or": [{"lastReplay": {"$ne": message_id}}, {"status": {"$nin": OPEN}}]}
