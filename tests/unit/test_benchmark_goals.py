"""The table of `make bench`."""

import argparse
import io

import pytest
from rich.console import Console

from benchmarks.goals import GOALS, MEASUREMENTS, chosen, table_of


def shown(figures: dict[str, float], committed: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of({"figures": figures, "cores": 2, "load": 0.5}, committed))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_goal_is_reached_on_its_side_of_the_limit() -> None:
    lines = shown({"rate": 1600.0, "alone-p50": 9.0}, {}).splitlines()
    (rate,) = [line for line in lines if GOALS["rate"].what in line]
    (alone,) = [line for line in lines if GOALS["alone-p50"].what in line]
    assert "≥ 1500 /s" in rate
    assert "reached" in rate
    assert "≤ 8 ms" in alone
    assert "reached" not in alone


def test_a_figure_is_compared_with_the_committed_one() -> None:
    text = shown({"rate": 900.0}, {"commit": "abc1234", "load": 0.2, "figures": {"rate": 600.0}})
    assert "abc1234" in text
    assert "600" in text
    assert "1.50" in text


def test_an_unknown_measurement_is_refused_with_those_that_there_are() -> None:
    assert chosen("full,hot") == ["full", "hot"]
    with pytest.raises(argparse.ArgumentTypeError, match=f"'fast' is none of {', '.join(MEASUREMENTS)}"):
        chosen("fast")
