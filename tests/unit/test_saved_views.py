"""Saved views: what of a query is kept."""

from urllib.parse import parse_qsl, urlencode

from hypothesis import given
from hypothesis import strategies as st

from operations.saved_views.query import LISTS, kept_query

ORDERS = LISTS["/orders"]
VALUES = st.text(st.characters(codec="utf-8"), max_size=30)


def test_only_filters_of_the_same_list_are_kept() -> None:
    query = "status=FAILED&cursor=abc&page=3&selection=x&open=1&user=%20u1%20&product="
    assert kept_query(ORDERS, query) == "user=u1&status=FAILED&open=1"
    assert kept_query(LISTS["/incidents"], query) == ""


def test_the_name_of_a_customer_is_not_kept() -> None:
    assert kept_query(ORDERS, "customer=Ann+Smith") == ""


def test_free_text_is_not_kept() -> None:
    assert kept_query(ORDERS, "reason=Ann+Smith+called&code=x") == "code=x"
    assert kept_query(LISTS["/dead-letters/list"], "text=ann%40example.com&error=Ann+Smith&span=24h") == "span=24h"


@given(st.dictionaries(st.sampled_from([*ORDERS.parameters, "cursor", "customer", "x"]), VALUES))
def test_a_kept_query_is_kept_as_it_is(given_: dict[str, str]) -> None:
    kept = kept_query(ORDERS, urlencode(given_))
    assert kept_query(ORDERS, kept) == kept
    assert {name for name, _ in parse_qsl(kept)} <= set(ORDERS.parameters)
