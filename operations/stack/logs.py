"""Reads the logs of a stack, whether or not it runs: lines of all its programs in the order of time, and new ones."""

import heapq
import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from operations.stack.layout import Layout

SUPERVISOR = "supervisor"
"""The name under which the events of a stack in the background are shown."""

POLL_SECONDS = 0.25
BEGINNING = datetime.min.replace(tzinfo=UTC)

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?")
_LEVEL = re.compile(r"\[(debug|info|notice|warning|error|critical)\s*\]", re.IGNORECASE)
_MONGODB_LEVELS = {"F": "critical", "E": "error", "W": "warning", "I": "info"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a program's log, without its end.

    A line without a time or a level, such as one of a traceback, has those of the line before it.
    """

    at: datetime
    program: str
    level: str
    text: str


def log_files(layout: Layout) -> dict[str, Path]:
    """Return the log of each program that was ever started here, by its name."""
    found = {path.stem: path for path in sorted(layout.logs.glob("*.log"))}
    # The names of the run before count too: a program may not have been started again.
    found |= {
        name: path.with_name(f"{name}.log")
        for path in sorted(layout.logs.glob("*.log.old"))
        if (name := path.name.removesuffix(".log.old")) not in found
    }
    return found | ({SUPERVISOR: layout.supervisor_log} if layout.supervisor_log.exists() else {})


class LineParser:
    """Finds the time and the level of each line of a program's log."""

    def __init__(self, program: str) -> None:
        self._last = LogLine(BEGINNING, program, "info", "")

    def parse(self, raw: bytes) -> LogLine:
        """Return a line; its time never precedes that of the line before it, so merged logs keep their order."""
        text = raw.decode(errors="replace").rstrip("\r\n")
        at, level = _json_head(text) if text.startswith("{") else _text_head(text)
        known_at = self._last.at if at is None else max(at, self._last.at)
        known_level = (level or "info") if at is not None else self._last.level
        self._last = LogLine(known_at, self._last.program, known_level, text)
        return self._last


def _text_head(text: str) -> tuple[datetime | None, str | None]:
    """Return the time at the beginning of a line, and its level."""
    found = _TIME.match(text)
    if found is None:
        return None, None
    level = _LEVEL.search(text, found.end(), found.end() + 20)
    return _as_time(found[0].replace(",", ".")), level[1].lower() if level else None


def _json_head(text: str) -> tuple[datetime | None, str | None]:
    """Return the time and the level of a line of a service, or of MongoDB."""
    try:
        fields: Any = orjson.loads(text)
    except ValueError:
        return None, None
    of_mongodb = fields.get("t")
    if isinstance(of_mongodb, dict):
        return _as_time(of_mongodb.get("$date")), _MONGODB_LEVELS.get(str(fields.get("s")))
    return _as_time(fields.get("timestamp")), str(fields.get("level", "info"))


def _as_time(text: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


class StackLogs:
    """The logs of a stack's programs: all that is there now, and then what is appended.

    Logs that appear later are read too, and those that `up` begins anew. `close` closes the files.
    """

    def __init__(self, layout: Layout, programs: Collection[str], since: datetime | None) -> None:
        """Read the logs of these programs, or of all if none is named; with `since`, also of the run before."""
        self._layout = layout
        self._programs = programs
        self._since = since
        self._logs: dict[str, _Log] = {}

    def read(self, *, unfinished: bool = False) -> Iterator[LogLine]:
        """Yield the complete lines that were written since the last call, in the order of time.

        With `unfinished`, for the last call, also lines that have no end yet.
        """
        for program, path in log_files(self._layout).items():
            if program not in self._logs and (program in self._programs or not self._programs):
                self._logs[program] = _Log(program, path, with_former=self._since is not None)
        lines = heapq.merge(*(log.read(unfinished=unfinished) for log in self._logs.values()), key=lambda line: line.at)
        return (line for line in lines if self._since is None or line.at >= self._since)

    def close(self) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.close()

    def follow(self) -> Iterator[LogLine]:
        """Yield lines as they are written, without an end."""
        while True:
            yield from self.read()
            time.sleep(POLL_SECONDS)


class _Log:
    """The log of one program. A line that is not complete yet waits for its end."""

    def __init__(self, program: str, path: Path, *, with_former: bool) -> None:
        self._path = path
        self._parser = LineParser(program)
        self._part = b""
        self._file = _opened(path.with_name(f"{path.name}.old")) if with_former else None

    def read(self, *, unfinished: bool) -> Iterator[LogLine]:
        """Yield the lines that were appended; if the log was begun anew meanwhile, first the last ones before that."""
        yield from self._rest()
        if self._is_begun_anew():
            self.close()
            yield from self._unfinished()  # of a run that was killed: nothing follows
            self._file = _opened(self._path)
            yield from self._rest()
        if unfinished:
            yield from self._unfinished()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rest(self) -> Iterator[LogLine]:
        for raw in self._file or ():
            self._part += raw
            if self._part.endswith(b"\n"):
                line, self._part = self._part, b""
                yield self._parser.parse(line)

    def _unfinished(self) -> Iterator[LogLine]:
        if self._part:
            line, self._part = self._part, b""
            yield self._parser.parse(line)

    def _is_begun_anew(self) -> bool:
        try:
            present = self._path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or not os.path.samestat(present, os.fstat(self._file.fileno()))


def _opened(path: Path) -> IO[bytes] | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
