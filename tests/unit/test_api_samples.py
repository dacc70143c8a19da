"""The API against its samples: changing it is a visible act."""

import pytest

from tests.support.api_samples import METRICS, NoSamplesError, committed_samples, current_samples, differences
from tests.support.api_samples import stored_samples as stored


def test_the_api_is_as_its_samples_show_it() -> None:
    found = differences(stored(), current_samples())
    assert not found, "Is it intended? Then `make api-samples`.\n" + "\n".join(found)


def test_a_changed_metric_is_shown_with_the_lines_that_differ() -> None:
    before = {METRICS: "a counter {}\nb gauge {}\n"}
    [found] = differences(before, {METRICS: "a counter {}\nb gauge {queue}\n"})
    assert found.startswith("tests/samples/metrics.txt: changed\n")
    assert "-b gauge {}\n+b gauge {queue}\n" in found


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ('{"get": {"summary": "All things"}}', "changed, but only what people read of it"),
        ('{"get": {"summary": "Things", "deprecated": true}}', "changed"),
        ('{"get": {"summary": {"type": "string"}}}', "changed"),
    ],
    ids=["text", "key", "field called summary"],
)
def test_a_reworded_document_is_distinguished_from_a_changed_one(operation: str, kind: str) -> None:
    name = "docs/api/order.json"
    [found] = differences({name: '{"get": {"summary": "Things"}}'}, {name: operation})
    assert found.startswith(f"{name}: {kind}\n")


def test_a_document_that_is_new_or_gone_is_a_difference() -> None:
    assert [found.splitlines()[0] for found in differences({"a.json": "{}\n"}, {"b.json": "{}\n"})] == [
        "a.json: gone",
        "b.json: new",
    ]


def test_a_commit_without_samples_is_not_compared_with() -> None:
    with pytest.raises(NoSamplesError):
        committed_samples("nothing-like-it")
