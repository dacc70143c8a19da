"""The version matrix of the tests in containers."""

import pytest

from operations.doctor.machine import OLDEST_PYTHON, OLDEST_RABBITMQ
from tests.compose.matrix import FILE, Combination, Result, combinations, is_version_of, table, verdict, version_in

REPORT = '<testsuites><testsuite name="pytest" errors="{}" failures="{}" skipped="{}" tests="{}"/></testsuites>'


@pytest.fixture(scope="module")
def matrix() -> dict[str, Combination]:
    return combinations(FILE.read_text())


def numbers(image: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version_in(image).split("."))


@pytest.mark.parametrize("field", ["python", "rabbitmq", "mongo"])
def test_the_oldest_and_the_newest_versions_are_tried_together(matrix: dict[str, Combination], field: str) -> None:
    versions = [numbers(getattr(combination, field)) for combination in matrix.values()]

    assert numbers(getattr(matrix["oldest"], field)) == min(versions)
    assert numbers(getattr(matrix["newest"], field)) == max(versions)
    assert (matrix["oldest"].compose, matrix["newest"].compose) == ("v1", "v2")


def test_the_oldest_versions_are_those_that_doctor_accepts(matrix: dict[str, Combination]) -> None:
    assert numbers(matrix["oldest"].python) == OLDEST_PYTHON
    assert numbers(matrix["oldest"].rabbitmq) == OLDEST_RABBITMQ


def test_a_combination_that_is_not_complete_is_refused() -> None:
    with pytest.raises(TypeError, match="mongo"):
        combinations('[a]\npython = "p:1.0"\nrabbitmq = "r:1.0"\ncompose = "v1"')
    with pytest.raises(ValueError, match="a: compose is v3, not one of v1, v2"):
        combinations('[a]\npython = "p:1.0"\nrabbitmq = "r:1.0"\nmongo = "m:1.0"\ncompose = "v3"')


@pytest.mark.parametrize(
    ("version", "image", "same"),
    [
        ("3.11.2", "python:3.11-slim", True),
        ("3.1.2", "python:3.11-slim", False),
        ("6.0.27", "mongo:6.0.27", True),
        ("6.0.5", "mongo:6.0.27", False),
        ("4.3.6", "localhost:5000/rabbitmq:4.3-management", True),
    ],
)
def test_an_image_has_the_version_of_its_tag(version: str, image: str, same: bool) -> None:
    assert is_version_of(version, image) is same


@pytest.mark.parametrize(
    ("report", "passed", "what"),
    [
        (REPORT.format(0, 0, 0, 5), True, "5 passed, 0 failed, 0 skipped"),
        (REPORT.format(1, 1, 0, 5), False, "3 passed, 2 failed, 0 skipped"),
        (REPORT.format(0, 0, 5, 5), False, "0 passed, 0 failed, 5 skipped"),
        (REPORT.format(0, 0, 0, 0), False, "0 passed, 0 failed, 0 skipped"),
    ],
)
def test_a_combination_has_passed_if_every_test_has(report: str, passed: bool, what: str) -> None:
    assert verdict(report) == (passed, what)


def test_the_table_shows_a_combination_that_could_not_run(matrix: dict[str, Combination]) -> None:
    shown = table([Result(matrix["newest"], (), False, "python:3.14-slim has version 3.13.5", 61)])

    assert [next(iter(column.cells)) for column in shown.columns] == [
        "newest", "?", "?", "?", "?", "FAILED", "python:3.14-slim has version 3.13.5", "1:01",
    ]  # fmt: skip
