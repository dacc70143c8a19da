"""Shows dead letters in 80 columns."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

import orjson
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from operations.commands.terminal import foreign
from operations.dead_letters.difference import Change
from operations.dead_letters.effects import Effect
from operations.dead_letters.groups import HistogramBin
from operations.dead_letters.letter import why_foreign
from operations.dead_letters.records import LetterPage
from operations.dead_letters.status import DEAD, HANDLED
from operations.impact.impact import Impact
from operations.impact.ranking import RankedPage
from operations.impact.wording import money_in_words, orders_in_words
from operations.order_actions.search import MOST_COUNTED
from shared.database import Document
from shared.printable import printable

SHORT_ID = 10
"""Characters of an id in lists; commands accept any unique prefix."""

MOST_BODY_LINES = 200
MOST_BINARY_BYTES = 64
LONGEST_HEADER = 500
"""What a terminal shows of a body or a header; output for a program has all."""

MOST_CHANGES = 100
"""Fields that an edit changes, and that are shown."""

_EFFECTS = {Effect.CHANGES: "green", Effect.FAILS: "red"}
_BARS = " ▁▂▃▄▅▆▇█"
_JSON = Syntax("", "json", background_color="default")
_COLOURS = {DEAD: "red", HANDLED: "green"}


def show_page(page: LetterPage, total: int, console: Console) -> None:
    """Print two lines for each letter: its fields and its error; then how many there are on all pages."""
    if not page.items:
        console.print("No dead letters.")
    for letter in page.items:
        line = Text()
        line.append(letter["_id"] if wide(console) else short(letter["_id"]), style="bold")
        line.append(f"  {format_time(letter['lastFailedAt'])}  ")
        line.append(f"{letter['status']:<9}", style=_COLOURS.get(letter["status"], "yellow"))
        if letter.get("foreign"):
            line.append("  foreign", style="red")
        line.append(f"  {letter['service']}  {printable(letter['routingKey']) or '(no type)'}")
        if letter["orderId"]:
            line.append(f"  {printable(letter['orderId'])}", style="dim")
        _print_line(line, console)
        _print_line(_error_line(letter["error"]["type"], letter["error"]["message"]), console)
    if page.next_cursor:
        more = f"{total:,}{' or more' if total >= MOST_COUNTED else ''} letters in all"
        text = f"{more}; next page: --cursor {page.next_cursor}"
        console.print(text, style="dim", highlight=False, soft_wrap=True)


def show_groups(page: RankedPage, console: Console, *, skip: int = 0) -> None:
    """Print for each group its counts, its error, what it means for customers, its last replay, and a chart."""
    if not page.items:
        console.print("No dead letters." if not page.total else f"There are only {page.total:,} groups.")
    for group, impact in page.items:
        line = Text()
        line.append(group.fingerprint, style="bold")
        line.append(f"  {group.open:,} open", style="red" if group.open else "green")
        line.append(f" of {group.total:,}  {group.service}  {printable(group.routing_key) or '(no type)'}  ")
        line.append(group.status, style="yellow")
        _print_line(line, console)
        _print_line(_error_line(group.error_type, group.message), console)
        _show_impact(impact, console)
        if last := group.replayed:
            text = f"  replayed by {printable(last.by)} {format_time(last.at)}: {last.outcome.in_brief()}"
            console.print(text, style="red" if last.outcome.failed else "", highlight=False, markup=False)
        console.print(
            f"  [dim]{format_time(group.first_failed_at)}[/] {sparkline(group.histogram)} "
            f"[dim]{format_time(group.last_failed_at)}[/]",
            highlight=False,
        )
    shown = skip + len(page.items)
    if page.items and page.total > len(page.items):
        more = f"groups {skip + 1:,} to {shown:,} of {page.total:,}"
        more += f"; next page: --skip {shown}" if shown < page.total else ""
        console.print(more, style="dim", highlight=False, soft_wrap=True)
    if page.caveat:
        console.print(page.caveat, style="dim", highlight=False, soft_wrap=True)


def _show_impact(impact: Impact, console: Console) -> None:
    parts = [orders_in_words(impact), money_in_words(impact)]
    parts += [f"next deadline {format_time(impact.deadline)}"] if impact.deadline else []
    text = f"  {printable('; '.join(part for part in parts if part))}"
    console.print(text, style="magenta", highlight=False, markup=False)


def show_letter(letter: Document, impact: Impact, console: Console) -> None:
    """Print a letter: its error, its fields, its replays, its traceback, its body and its headers."""
    error = letter["error"]
    console.print(f"[bold red]{foreign(error['type'])}[/]: {foreign(error['message'])}", highlight=False)
    facts: dict[str, object] = {
        "id": letter["_id"],
        "status": letter["status"],
        "queue": letter["queue"] or "unknown",
        "type": letter["routingKey"] or "unknown",
        "order": letter["orderId"],
        "message": letter["messageId"],
        "sent as": letter.get("user"),
        "foreign": why_foreign(letter),
        "group": letter["fingerprint"],
        "attempts": letter["attempts"],
        "failed": f"{format_time(letter['firstFailedAt'])} to {format_time(letter['lastFailedAt'])}",
    }
    for name, value in facts.items():
        if value:
            console.print(f"  [dim]{name:<9}[/]{foreign(str(value))}", highlight=False, soft_wrap=True)
    console.print("its group affects", style="bold")
    _show_impact(impact, console)
    _show_decisions(letter, console)
    if error["traceback"]:
        console.print("traceback", style="bold")
        console.print(_indented(Text(printable(error["traceback"].rstrip(), keep_lines=True))))
    console.print(f"body, {letter['size']:,} bytes, {letter['contentType']}", style="bold")
    console.print(_indented(_body(letter["body"], letter["contentType"], whole=wide(console))))
    if letter["headers"]:
        console.print("headers", style="bold")
        for name, value in letter["headers"].items():
            text = str(value)
            shown = text if wide(console) or len(text) <= LONGEST_HEADER else f"{text[:LONGEST_HEADER]} …"
            console.print(f"  [dim]{foreign(name)}[/] {foreign(shown)}", highlight=False)


def _show_decisions(letter: Document, console: Console) -> None:
    for replay in letter["replays"]:
        outcome = replay["outcome"] + (f" {format_time(replay['outcomeAt'])}" if replay["outcomeAt"] else "")
        error = f": {replay['error']['type']}: {replay['error']['message']}" if "error" in replay else ""
        action = "replayed, edited," if replay["edited"] else "replayed"
        reason = f" ({replay['why']})" if replay["why"] else ""
        line = f"  {action} {format_time(replay['at'])} by {replay['by']}{reason}: {outcome}{error}"
        console.print(printable(line), markup=False, highlight=False)
    if letter["discarded"]:
        discarded = letter["discarded"]
        line = f"  discarded {format_time(discarded['at'])} by {discarded['by']}: {discarded['why']}"
        console.print(printable(line), markup=False, highlight=False)
    for restored in letter.get("restored", ()):
        line = f"  restored {format_time(restored['at'])} by {restored['by']}: {restored['why']}"
        console.print(printable(line), markup=False, highlight=False)


def _body(body: bytes, content_type: str, *, whole: bool) -> Text:
    shorten = str if whole else _cut
    if content_type == "application/json":
        pretty = json.dumps(orjson.loads(body), indent=2, ensure_ascii=False)
        return _JSON.highlight(printable(shorten(pretty), keep_lines=True))
    if content_type == "text/plain":
        return Text(printable(shorten(body.decode()), keep_lines=True))
    if whole or len(body) <= MOST_BINARY_BYTES:
        return Text(body.hex(" "))
    more = len(body) - MOST_BINARY_BYTES
    return Text(f"{body[:MOST_BINARY_BYTES].hex(' ')} … {more:,} more bytes: `export` writes all")


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2), expand=False)


def _cut(text: str) -> str:
    lines = text[: 200 * MOST_BODY_LINES].splitlines()
    left = len(text.splitlines()) - MOST_BODY_LINES if len(lines) > MOST_BODY_LINES else 0
    return "\n".join([*lines[:MOST_BODY_LINES], *([f"… {left} more lines: `export` writes all"] if left else [])])


def show_changes(changes: Sequence[Change], console: Console) -> None:
    """Print what an edit changes, a line for each field."""
    for change in changes[:MOST_CHANGES]:
        console.print(Text(f"  {printable(change.in_words())}"), soft_wrap=True)
    if len(changes) > MOST_CHANGES:
        console.print(f"  and {len(changes) - MOST_CHANGES:,} more", style="dim", highlight=False)


def show_effects(effects: Iterable[tuple[str, Effect, int]], console: Console) -> None:
    """Print what a replay would do: the number of letters, and the effect on them."""
    for words, effect, number in effects:
        console.print(Text(f"{number:>7,}  {printable(words)}", style=_EFFECTS.get(effect, "")), soft_wrap=True)


def sparkline(histogram: Sequence[HistogramBin]) -> str:
    """Return the histogram as a line of bars."""
    most = max((found.count for found in histogram), default=0)
    # Rounded up, so every bin with letters is visible.
    return "".join(_BARS[-(-found.count * (len(_BARS) - 1) // most)] if most else " " for found in histogram)


def wide(console: Console) -> bool:
    """Return True if the output is for a program, which needs complete ids."""
    return not console.is_terminal


def short(letter_id: str) -> str:
    """Return the abbreviated id for lists."""
    return letter_id[:SHORT_ID]


def format_time(at: datetime) -> str:
    """Format a time in UTC to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _print_line(line: Text, console: Console) -> None:
    """Print one line and truncate what does not fit."""
    console.print(line, no_wrap=True, overflow="ellipsis")


def _error_line(error_type: str, message: str) -> Text:
    line = Text("  ")
    line.append(printable(error_type), style="red")
    line.append(": " + printable(" ".join(message.split())))
    return line
