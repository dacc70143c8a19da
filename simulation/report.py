"""What a run of seeds and a failing plan look like for people, and as JSON. Pure: no I/O."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from simulation.coverage import ANSWERS, DECISIONS, FAILPOINTS, KILLED_AT, ROWS
from simulation.runner import SeedResult, Summary
from simulation.world import Outcome

SHOWN_STEPS = 150
"""The most steps of a timeline that are shown: the last ones."""


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield what many seeds have shown."""
    minutes = summary.virtual_seconds / 60
    yield (
        f"{summary.seeds:,} seeds in {summary.seconds:.1f} s ({summary.per_second:.1f} a second): "
        f"{summary.steps:,} steps, {minutes:,.0f} virtual minutes, {summary.crashes:,} crashes"
    )
    yield f"orders: {_counted(summary.statuses)}"
    yield f"faults: {_counted(summary.faults)}"
    missing = summary.met.missing()
    yield (
        f"met: {_share(FAILPOINTS, missing['failpoints'])} failpoints, "
        f"{_share(FAILPOINTS, missing[KILLED_AT])} killed at, {_share(ROWS, missing['rows'])} rows of the saga, "
        f"{_share(ANSWERS, missing['answers'])} answers, {_share(DECISIONS, missing['decisions'])} decisions about jobs"
    )
    for kind, never in missing.items():
        if never:
            yield f"{kind} never met: {', '.join(never)}"


def _share(everything: Collection[Any], missing: Sequence[str]) -> str:
    return f"{len(everything) - len(missing)} of {len(everything)}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda each: -each[1]))


def told(failed: SeedResult, again: Outcome) -> Iterator[str]:
    """Yield the story of a seed that has failed, or that its second run was another."""
    if again.violations:
        yield from story_lines(again)
    else:
        yield (
            f"seed {failed.seed} does not fail again, which is a defect of the simulation: the same seed must give the "
            f"same run; sha256 of the trace: {failed.sha256}, then {again.sha256}"
        )


def story_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the story of a failing plan: its orders and faults, what happened, and what is wrong at the end."""
    of = outcome.plan
    yield f"seed {of.seed}, cards are charged {of.card_capture.replace('_', ' ')}, batches of at most {of.batch_limit}"
    yield from (f"  {story}" for story in outcome.plan.stories)
    yield from (f"  {fault}" for fault in outcome.plan.faults)
    left_out = max(0, len(outcome.trace) - SHOWN_STEPS)
    yield f"the last {len(outcome.trace) - left_out} of {len(outcome.trace):,} steps:"
    yield from (f"  {number:>6} {line}" for number, line in _numbered(outcome.trace, left_out))
    yield from (f"VIOLATED  {violation}" for violation in outcome.violations)
    yield f"sha256 of the trace: {outcome.sha256}"
    yield f"again: {replay_command(outcome)}"


def _numbered(lines: Iterable[str], left_out: int) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if number > left_out)


def replay_command(outcome: Outcome) -> str:
    """Return the command that runs this plan again."""
    orders, faults = outcome.plan.numbers
    return (
        f"ordersaga simulate --seed {outcome.plan.seed} --only-orders {_listed(orders)} --only-faults {_listed(faults)}"
    )


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers)) or "none"


def as_json(summary: Summary, stories: Iterable[Outcome]) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "seeds": summary.seeds,
        "seconds": round(summary.seconds, 3),
        "seedsPerSecond": round(summary.per_second, 2),
        "steps": summary.steps,
        "virtualSeconds": round(summary.virtual_seconds, 1),
        "crashes": summary.crashes,
        "orders": dict(sorted(summary.statuses.items())),
        "faults": dict(sorted(summary.faults.items())),
        "missing": summary.met.missing(),
        "errors": [{"type": type_, "error": error} for type_, error in sorted(summary.met.errors)],
        "failed": [
            {"seed": failed.seed, "sha256": failed.sha256, "violations": list(failed.violations)}
            for failed in summary.failed
        ],
        "stories": [story_as_json(story) for story in stories],
    }


def story_as_json(outcome: Outcome) -> dict[str, Any]:
    """Return one run for programs."""
    orders, faults = outcome.plan.numbers
    return {
        "seed": outcome.plan.seed,
        "sha256": outcome.sha256,
        "orders": list(orders),
        "faults": list(faults),
        "steps": len(outcome.trace),
        "violations": list(outcome.violations),
        "again": replay_command(outcome),
    }
