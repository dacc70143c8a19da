"""What a run of chaos came to: as a table for people, and as JSON."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos.clients import Availability
from chaos.verdict import Finding
from operations.audit import Report
from operations.load.report import percentile

FEWEST_FOR_P99 = 100
MOST_LISTED = 20
OVERALL = "all"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a run ended, and whether it was meant to."""

    words: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that has happened, and the seconds until clients saw nothing of it any more; None if that never came.

    `recovery` and `all_settled` begin with the strike, or with the repair of a fault that `lasted`.
    """

    number: int
    name: str
    title: str
    what: str
    at: float
    lasted: float
    recovery: float | None
    from_strike: float | None
    all_settled: float | None
    operator: str = ""

    @property
    def is_seen_for_ever(self) -> bool:
        """Whether the orders around it were not accepted and settled in time."""
        return None in (self.recovery, self.from_strike, self.all_settled)

    @property
    def has_lasted(self) -> bool:
        """Whether it lasted for a millisecond; one whose run is interrupted at that moment may not have."""
        return round(self.lasted, 3) > 0

    def in_words(self) -> str:
        """Return a line about it."""
        clock = datetime.fromtimestamp(self.at, UTC)
        times = f"recovery {_seconds(self.recovery)}, all settled {_seconds(self.all_settled)}"
        since = f" after its end ({_seconds(self.from_strike)} from its beginning)" if self.has_lasted else ""
        duty = f"; operator: {self.operator}" if self.operator else ""
        return f"{clock:%H:%M:%S} {self.title} ({self.what}): {times}{since}{duty}"

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "number": self.number,
            "fault": self.name,
            "victim": self.what,
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "lastedSeconds": round(self.lasted, 3),
            "measuredFrom": "repair" if self.has_lasted else "strike",
            "recoverySeconds": _rounded(self.recovery),
            "fromStrikeSeconds": _rounded(self.from_strike),
            "allSettledSeconds": _rounded(self.all_settled),
            "operator": self.operator or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to."""

    seed: int
    cluster: bool
    rate: float
    asked: int | None
    ending: Ending
    hits: Sequence[Hit]
    findings: Sequence[Finding]
    books: Report
    accepted: int
    audited: int
    replayed: int
    open_letters: int
    away: Sequence[str]
    availability: Availability
    seconds: float
    load_average: float
    journal: Path
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The kinds of faults that this machine cannot have, and why."""

    @property
    def never(self) -> int:
        """The number of faults that clients saw for ever."""
        return sum(hit.is_seen_for_ever for hit in self.hits)

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        nothing_wrong = not (self.findings or self.open_letters or self.away or self.never)
        return self.ending.is_whole and bool(self.hits) and self.books.ok and nothing_wrong

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        seen = self.availability
        return {
            "ok": self.ok,
            "seed": self.seed,
            "cluster": self.cluster,
            "rate": self.rate,
            "seconds": round(self.seconds),
            "load": {"average": round(self.load_average, 1), "cores": os.cpu_count()},
            "asked": self.asked,
            "done": len(self.hits),
            "end": self.ending.words,
            "never": self.never,
            "kinds": self.rows(),
            "availability": {
                "requests": seen.requests,
                "answeredAtFirstTry": seen.at_first_try,
                "share": round(seen.share, 5),
                "longestGapSeconds": round(seen.longest_gap, 3),
                "repeatedBecause": dict(seen.repeated_because.most_common()),
            },
            "accepted": self.accepted,
            "audited": self.audited,
            "findings": [{"kind": each.kind, "found": each.words} for each in self.findings],
            "deadLetters": {"replayed": self.replayed, "open": self.open_letters},
            "notBack": list(self.away),
            "leftOut": dict(self.left_out),
            "hits": [hit.as_json() for hit in self.hits],
            "audit": self.books.as_json(),
            "answers": None if self.ok else str(self.journal),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a line of the table for each kind of fault, and one for all; times are in seconds."""
        titles = dict.fromkeys(hit.title for hit in sorted(self.hits, key=lambda hit: hit.name))
        grouped = [(title, [hit for hit in self.hits if hit.title == title]) for title in titles]
        return [
            {
                "kind": title,
                "hits": len(hits),
                "lasting": all(hit.has_lasted for hit in hits) and bool(hits),
                "recovery": _percentiles([hit.recovery for hit in hits]),
                "fromStrike": _percentiles([hit.from_strike for hit in hits]),
                "allSettled": _percentiles([hit.all_settled for hit in hits]),
                "never": sum(hit.is_seen_for_ever for hit in hits),
            }
            for title, hits in [*grouped, (OVERALL, list(self.hits))]
        ]

    def lines(self) -> Iterator[str]:
        """Yield the report in Markdown, as docs/reliability.md has it."""
        yield "| fault | times | recovery p50 / p99 / max | from its beginning | all settled | never |"
        yield "|---|---|---|---|---|---|"
        for row in self.rows():
            spans = " | ".join(_in_cell(row, span) for span in ("recovery", "fromStrike", "allSettled"))
            star = "*" if row["lasting"] else ""
            yield f"| {row['kind']}{star} | {row['hits']} | {spans} | {row['never']} |"
        yield ""
        yield f"Seconds; p99 from {FEWEST_FOR_P99} times on. * measured from its end."
        asked = f" of {self.asked}" if self.asked is not None else ""
        yield (
            f"{len(self.hits)}{asked} faults: {self.ending.words}. {self.rate:g} clients/s for {self.seconds:.0f} s, "
            f"at a load average of {self.load_average:.1f} on {os.cpu_count()} cores; seed {self.seed}."
        )
        seen = self.availability
        yield (
            f"{seen.share:.2%} of {seen.requests:,} requests were answered at the first attempt; the longest time "
            f"without an accepted order was {seen.longest_gap:.1f} s."
        )
        yield from self._verdict()

    def _verdict(self) -> Iterator[str]:
        yield (
            f"{self.accepted:,} orders accepted, {self.audited:,} audited; {self.replayed} dead letters replayed, "
            f"{self.open_letters} open"
        )
        for title, why in self.left_out.items():
            yield f"left out: {title}: {why}"
        for finding in self.findings[:MOST_LISTED]:
            yield f"✗ {finding.kind}: {finding.words}"
        if len(self.findings) > MOST_LISTED:
            yield f"✗ and {len(self.findings) - MOST_LISTED} more"
        for violation in self.books.violations[:MOST_LISTED]:
            yield f"✗ {violation.describe()}"
        if self.away:
            yield f"✗ not back: {', '.join(self.away)}"
        if not self.ok:
            yield f"each request and each answer: {self.journal}"
        else:
            yield "✓ Nothing is lost, doubled or changed, and the books balance"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _percentiles(values: Sequence[float | None]) -> dict[str, float]:
    ordered = sorted(value for value in values if value is not None)
    return {name: round(percentile(ordered, share), 3) for name, share in {"p50": 50, "p99": 99, "max": 100}.items()}


def _in_cell(row: dict[str, Any], span: str) -> str:
    names = ("p50", "p99", "max") if row["hits"] >= FEWEST_FOR_P99 else ("p50", "max")
    times = {name: f"{row[span][name]:.1f}" for name in names if row["hits"] > row["never"]}
    return " / ".join(times.get(name, "-") for name in ("p50", "p99", "max"))
