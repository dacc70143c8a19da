"""Logs by structlog: readable lines for people or JSON for machines, each with the service's name.

A line about an order has its `order_id`, a line about a message also the `message_id`. Code that handles one message or
request binds them to the log context. A line about many orders lists the first as `order_ids`.
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
    # They log a traceback for every failed attempt to connect, which the bus already reports in one line.
    for redundant in ("aio_pika", "aiormq"):
        logging.getLogger(redundant).setLevel(logging.CRITICAL)
    for chatty in ("pymongo", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


@contextmanager
def logs_to_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Keep log lines out of a command's output, which may be JSON, while it uses parts of a service.

    Lines of `level` (of the module `logging`) and above go to stderr. The previous configuration is restored.
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
    """Remove the password from every URL: a driver may quote its URL in an error."""
    return {name: _hidden(value) if isinstance(value, str) else value for name, value in event.items()}


def _hidden(value: str) -> str:
    # Line by line, because a traceback has many; the URL of a setting contains no line breaks.
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
    # Plain tracebacks: the default prints the local variables of every frame, passwords included.
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, _hide_passwords, _escape_unprintable, console]


def _escape_unprintable(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape control characters, which could act on a terminal or forge a line: paths and errors may contain any."""
    return {name: _escaped(value, keep_lines=name in _OF_MANY_LINES) for name, value in event.items()}


def _escaped(value: Any, *, keep_lines: bool) -> Any:
    if isinstance(value, str):
        return printable(value, keep_lines=keep_lines)
    if isinstance(value, int | float | None):
        return value
    text = repr(value)
    return value if text.isprintable() else printable(text)


def _ascii_json(event: Any, **options: Any) -> str:
    """Format an event in ASCII. JSON escapes every control character except DEL."""
    return json.dumps(event, **options).replace("\x7f", r"\u007f")
