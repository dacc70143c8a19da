"""The header `Prefer`: what is understood, and what is ignored."""

import pytest

from order_service.preferences import wait_in


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["wait=10"], 10),
        (["wait=1"], 1),
        (["wait=30"], 30),
        (["wait=31"], 30),
        (["wait=999999999"], 30),
        (["Wait = 7"], 7),
        (['wait="7"'], 7),
        (["wait=007"], 7),
        (["respond-async, wait=10"], 10),
        (["respond-async; a=1, wait=10; b"], 10),
        (["handling=lenient", "wait=10"], 10),
        (["wait=5, wait=9"], 5),
        ([], None),
        ([""], None),
        ([",,,"], None),
        (["return=minimal"], None),
        (["wait"], None),
        (["wait="], None),
        (["wait=0"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=10s"], None),
        (["wait=1e3"], None),
        (["wait=٣"], None),
        (["wait=9999999999"], None),
        (["await=10"], None),
        (["wait=10 20"], None),
    ],
)
def test_the_seconds_of_wait(headers: list[str], seconds: int | None) -> None:
    assert wait_in(headers) == seconds


def test_a_hostile_header_is_read_in_linear_time() -> None:
    assert wait_in(["wait=" + ";" * 60_000, "," * 60_000, " " * 60_000 + "x", '"' * 60_000]) is None
