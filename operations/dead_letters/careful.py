"""Careful replays: a few letters first, and more once those are handled. Pure."""

from operations.dead_letters.masking import mask_text
from shared.database import Document

GROWTH = 5


def end_of_step(sent: int, rate: float) -> int:
    """Return the number of letters sent at the end of the step that follows: 1, then 5 more, 25 … up to the rate."""
    end = size = 1
    while end <= sent:
        size = min(size * GROWTH, max(1, int(rate)))
        end += size
    return end


def is_end_of_step(sent: int, rate: float) -> bool:
    """Return whether as many letters are sent as at the end of a step, so that their outcome decides."""
    return sent > 0 and end_of_step(sent - 1, rate) == sent


def reason_to_stop(letter: Document, replay_id: str) -> Document:
    """Return the record of why a replay stops: this letter of it failed again, or has had no outcome for too long."""
    own = next(entry for entry in letter["replays"] if entry["replay"] == replay_id)
    error = own.get("error")
    masked = {"type": error["type"], "message": mask_text(error["message"])} if error else None
    return {"letter": letter["_id"], "error": masked}


def why_stopped(replay: Document) -> str | None:
    """Return why a careful replay stopped by itself, None if it did not."""
    if (stopped := replay.get("stopped")) is None:
        return None
    if stopped["error"] is None:
        return f"{stopped['letter']} had no outcome in time: check that its service runs"
    return f"{stopped['letter']} failed again: {stopped['error']['type']}: {stopped['error']['message']}"
