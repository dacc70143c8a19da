"""The command `ordersaga simulate`."""

from collections.abc import Iterator
from typing import Annotated

import typer

from operations.commands.terminal import open_console, print_json
from simulation import plan, report, shrinking, world
from simulation.plan import Plan
from simulation.runner import Summary, run_seeds
from simulation.world import Outcome

_OF_ONE = ("only_orders", "only_faults", "until", "trace")
_OF_MANY = ("seeds", "first", "processes", "stop_after")

Numbers = Annotated[str | None, typer.Option(metavar="1,2", show_default="all", help="For --seed: with these alone.")]


def simulate(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from --first on.")] = 100,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this seed alone.", show_default="many seeds")] = None,
    only_orders: Numbers = None,
    only_faults: Numbers = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="For --seed: stop in the debugger at this step.", show_default="never")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="For --seed: print every step.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.", show_default="one for each core")
    ] = None,
    stop_after: Annotated[int, typer.Option(min=1, help="Stop after so many seeds that fail.")] = 5,
    shrink: Annotated[bool, typer.Option(help="Look for the shortest story of a seed that fails.")] = True,
    as_json_document: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run all services in one thread on a virtual clock, with disasters drawn from seeds, and check every invariant.

    It needs no server and acts on no stack. The same seed gives the same run, step by step. Exit status 0 if the books
    balance for every seed, 1 if not; the first seed that fails is told as a story, as short as possible.
    """
    _refuse_what_has_no_effect(context, is_one=seed is not None, as_json_document=as_json_document)
    if seed is not None:
        outcome = world.run(_chosen(seed, only_orders, only_faults), until)
        if outcome.violations and shrink and only_orders is None and only_faults is None:
            outcome = shrinking.shrink(outcome, world.run)
        _show_one(outcome, trace=trace, as_json_document=as_json_document)
        raise typer.Exit(1 if outcome.violations else 0)
    summary = run_seeds(range(first, first + seeds), processes=processes, most_failed=stop_after)
    stories = [_story(summary, shrink=shrink)] if summary.failed else []
    if as_json_document:
        print_json(report.as_json(summary, stories))
    else:
        console = open_console()
        for line in _lines(summary, stories):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if summary.failed else 0)


def _refuse_what_has_no_effect(context: typer.Context, *, is_one: bool, as_json_document: bool) -> None:
    """Raise BadParameter for an option that would be passed over without a word."""
    why = "is for many seeds, not with --seed" if is_one else "is for one seed: add --seed"
    for parameter in _OF_MANY if is_one else _OF_ONE:
        if _is_given(context, parameter):
            raise typer.BadParameter(why, param_hint=f"--{parameter.replace('_', '-')}")
    if as_json_document and _is_given(context, "trace"):
        raise typer.BadParameter("is printed as text, not with --json", param_hint="--trace")


def _is_given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _chosen(seed: int, only_orders: str | None, only_faults: str | None) -> Plan:
    drawn = plan.draw(seed)
    orders, faults = drawn.numbers
    return drawn.keep(
        _numbers(only_orders, "--only-orders") if only_orders is not None else orders,
        _numbers(only_faults, "--only-faults") if only_faults is not None else faults,
    )


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("numbers are allowed, separated by commas, or none", param_hint=option) from None


def _story(summary: Summary, *, shrink: bool) -> Outcome:
    failed = world.run(plan.draw(summary.failed[0].seed))
    return shrinking.shrink(failed, world.run) if shrink and failed.violations else failed


def _show_one(outcome: Outcome, *, trace: bool, as_json_document: bool) -> None:
    if as_json_document:
        print_json(report.story_as_json(outcome))
        return
    console = open_console()
    lines = [*outcome.trace, *report.story_lines(outcome)] if trace else report.story_lines(outcome)
    for line in lines if outcome.violations or trace else (f"sha256 of the trace: {outcome.sha256}",):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(summary: Summary, stories: list[Outcome]) -> Iterator[str]:
    for failed in summary.failed:
        yield f"seed {failed.seed} fails: {failed.violations[0]}"
    for failed, story in zip(summary.failed, stories, strict=False):
        yield from report.told(failed, story)
    yield from report.summary_lines(summary)
