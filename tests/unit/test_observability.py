"""Logs: one line an event, in either format, and nothing in a traceback that only the code should see."""

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from shared.observability import configure_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def connect(url: str) -> None:
    raise RuntimeError(f"cannot reach {url.rpartition('@')[2]}")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_the_code_and_not_the_values_in_it(
    log_format: Literal["console", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("payment", "INFO", log_format)
    url = "amqp://guest:" + "s3cret" + "@broker"
    try:
        connect(url)
    except RuntimeError:
        structlog.get_logger().exception("failed", order_id="o1")
    logged = capsys.readouterr().out
    assert "cannot reach broker" in logged
    assert "in connect" in logged
    assert "guest:s3cret" not in logged


def test_json_is_one_object_a_line_with_the_service_named(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("payment", "INFO", "json")
    structlog.get_logger().info("handled", order_id="o1", count=3)
    logging.getLogger("some.library").warning("from a library")
    structlog.get_logger().debug("not at this level")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["service"] for line in lines] == ["payment", "payment"]
    assert (lines[0]["event"], lines[0]["order_id"], lines[0]["count"]) == ("handled", "o1", 3)
    assert (lines[1]["event"], lines[1]["level"]) == ("from a library", "warning")
