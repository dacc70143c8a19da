"""What a check found."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `mend` says what to do where the outcome is not "ok".

    A "note" is worth knowing and in nobody's way; something "wrong" has to be mended.
    """

    what: str
    outcome: Outcome
    detail: str
    mend: str = ""


def ok(what: str, detail: str) -> Finding:
    """Return the finding that all is well."""
    return Finding(what, "ok", detail)


def note(what: str, detail: str, mend: str = "") -> Finding:
    """Return a finding that is only worth knowing."""
    return Finding(what, "note", detail, mend)


def wrong(what: str, detail: str, mend: str) -> Finding:
    """Return a finding that has to be mended."""
    return Finding(what, "wrong", detail, mend)
