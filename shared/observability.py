"""Logs: structlog, readable lines for people or JSON for machines, with the service's name on every line.

A line about an order names it as `order_id`, one about a message names that as `message_id` too. Whoever has one
message or one request in hand binds these to the context; a line about many names some of them as `order_ids`.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

from shared import tracing
from shared.printable import printable
from shared.urls import hide_credentials

_OF_MANY_LINES = frozenset({"exception", "stack"})


def configure_logging(service: str, level: str, log_format: Literal["console", "json"]) -> None:
    """Send the logs of the service, and those of the libraries it uses, to stdout in one format."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _name_span,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(service, log_format))
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The bus says in a line of its own what these tell with a traceback at every attempt to connect.
    for told_already in ("aio_pika", "aiormq"):
        logging.getLogger(told_already).setLevel(logging.CRITICAL)
    for chatty in ("pymongo", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


@contextmanager
def logs_to_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Keep what parts of a service log while they work for a command out of its answer, least of all in its JSON.

    Lines of `level` (of the module `logging`) and above go to stderr; afterwards it is as it was.
    """
    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_console_renderers(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _name_span(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return {**event, **tracing.log_fields()}


def _hide_passwords(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Take the password out of every URL: a driver may put the one that it was given into an error."""
    return {name: _hidden(value) if isinstance(value, str) else value for name, value in event.items()}


def _hidden(value: str) -> str:
    # Line by line, as a traceback has many; the URL of a setting has no line breaks.
    return "\n".join(map(hide_credentials, value.split("\n"))) if "://" in value else value


def _renderers(service: str, log_format: Literal["console", "json"]) -> list[Any]:
    def name_service(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"service": service, **event}

    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if log_format == "json":
        return [
            remove,
            name_service,
            structlog.processors.format_exc_info,
            _hide_passwords,
            structlog.processors.JSONRenderer(_ascii_json),
        ]
    return [remove, name_service, *_console_renderers(colors=sys.stdout.isatty())]


def _console_renderers(*, colors: bool) -> list[Any]:
    # Plain tracebacks: the default prints every frame's local variables, passwords among them.
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _hide_passwords, _escape_unprintable, console]


def _escape_unprintable(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape what could act on a terminal or forge a line: a path, a header or an error may hold anything."""
    return {name: _escaped(value, keep_lines=name in _OF_MANY_LINES) for name, value in event.items()}


def _escaped(value: Any, *, keep_lines: bool) -> Any:
    if isinstance(value, str):
        return printable(value, keep_lines=keep_lines)
    if isinstance(value, int | float | None):
        return value
    text = repr(value)
    return value if text.isprintable() else printable(text)


def _ascii_json(event: Any, **options: Any) -> str:
    """Write an event in ASCII; JSON escapes all other control characters, but not DEL."""
    return json.dumps(event, **options).replace("\x7f", r"\u007f")
