"""Requests are answered or refused by their host and the site that they come from."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.guard import objection_to_host, objection_to_site, objection_to_write

HOST = "127.0.0.1:3012"
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:3012",
        "localhost",
        "LocalHost:3012",
        "[::1]:3012",
        "10.0.0.7",
        "ops.example",
        "OPS.example:80",
        "localhost.",
        "ops.example.:80",
    ],
)
def test_addresses_localhost_and_known_names_are_answered(host: str) -> None:
    assert objection_to_host(host, {"ops.example"}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "ops.example..",
        ":3012",
        "evil.example",
        "evil.example:3012",
        "[",
        "ops.example.evil",
        "127.0.0.1.evil",
        "x" * 5000,
    ],
)
def test_a_name_that_was_pointed_here_is_refused(host: str) -> None:
    objection = objection_to_host(host, {"ops.example"})
    assert objection
    assert "ORDERSAGA_HTTP_NAMES" in objection
    assert len(objection) < 300


@given(host=st.text(st.characters(max_codepoint=255)))
@example(host="127.0.0.1/")
@example(host="localhost?")
@example(host="127.0.0.1#")
@example(host="[::1]\\")
def test_any_host_gets_an_answer_and_a_name_never_passes(host: str) -> None:
    objection_to_host(host, ())
    assert objection_to_host(f"{host}.example", ())


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "host": HOST},
        {"sec-fetch-site": "same-origin", "origin": "https://elsewhere", "host": HOST},
        {"origin": f"http://{HOST}", "host": HOST},
        {"origin": "https://console.example", "host": "Console.example"},
    ],
    ids=["fetch-metadata", "fetch-metadata-first", "origin", "origin-behind-tls"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_of_our_own_page_is_answered(method: str, headers: dict[str, str]) -> None:
    assert objection_to_site(method, headers, page=False) is None
    assert objection_to_write(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": f"http://{HOST}", "host": HOST},
        {"sec-fetch-site": "same-site", "host": HOST},
        {"sec-fetch-site": "unheard-of", "host": HOST},
        {"origin": "http://127.0.0.1:8080", "host": HOST},
        {"origin": "http://evil.example", "host": HOST},
        {"origin": "null", "host": HOST},
        {"origin": "null", "host": ""},
        {"origin": "http://[", "host": "["},
        {"origin": f"http://{HOST}"},
    ],
    ids=["cross", "same-site", "unknown", "port", "name", "null", "no-name", "unreadable", "no-host"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_of_another_site_is_refused(method: str, headers: dict[str, str]) -> None:
    for page in (False, True):
        assert objection_to_site(method, headers, page=page)
    assert objection_to_write(headers)


@pytest.mark.parametrize("headers", [{"host": HOST}, {"sec-fetch-site": "none", "host": HOST}])
def test_a_client_other_than_a_browser_may_call_an_api_but_not_send_a_form(headers: dict[str, str]) -> None:
    assert objection_to_site("POST", headers, page=False) is None
    assert objection_to_write(headers)


@pytest.mark.parametrize(
    ("method", "page", "changes", "answered"),
    [
        ("GET", True, {}, True),
        ("HEAD", True, {}, True),
        ("GET", False, {}, False),
        ("POST", True, {}, False),
        ("GET", True, {"sec-fetch-dest": "iframe"}, False),
        ("GET", True, {"sec-fetch-dest": "object"}, False),
        ("GET", True, {"sec-fetch-mode": "no-cors"}, False),
    ],
)
def test_a_link_on_another_site_opens_a_page_in_a_tab(
    method: str, page: bool, changes: dict[str, str], answered: bool
) -> None:
    assert (objection_to_site(method, LINK | changes, page=page) is None) == answered
