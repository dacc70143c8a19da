"""Parsing of the provider's answers: tolerant of their form, without guessing their meaning."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service.addresses import is_ipv4
from provisioning_service.provider import Access, Package
from provisioning_service.smartvps_answers import (
    UnusableAnswerError,
    access,
    assigned_ip,
    decoded,
    listed_packages,
)

IP = "103.181.91.50"
OTHER = "198.51.100.7"
SECRET = "s3cret-Pa55"

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([IP, OTHER, '{"ip": "1"}']),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["ip", "IP", "ips", "packages", "Username", "password", "os"]), inner)
    ),
    max_leaves=20,
)


def encoded(value: Any, times: int) -> bytes:
    for _ in range(times):
        value = json.dumps(value)
    return str(value).encode()


@given(json_values.filter(lambda value: not isinstance(value, str)), st.integers(1, 5))
def test_an_answer_is_the_same_however_often_it_is_encoded(value: Any, times: int) -> None:
    try:
        once = decoded(encoded(value, 1))
    except RecursionError:
        return
    if not isinstance(once, str):  # text that is not strict JSON, such as NaN, stays text
        assert decoded(encoded(value, times)) == once


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'"' * 9, b"1" * 5000, b"NaN"])
def test_a_body_that_is_not_json_is_unusable(body: bytes) -> None:
    with pytest.raises(UnusableAnswerError):
        assigned_ip(decoded(body))
    with pytest.raises(UnusableAnswerError):
        access(decoded(body), IP)
    with pytest.raises(UnusableAnswerError):
        listed_packages(decoded(body))


@given(json_values)
def test_any_answer_is_read_or_refused(value: Any) -> None:
    """Only UnusableAnswerError is raised, and accepted values are valid."""
    with contextlib.suppress(UnusableAnswerError):
        assert is_ipv4(assigned_ip(value))
    with contextlib.suppress(UnusableAnswerError):
        found = access(value, IP)
        assert found.ip == IP
        assert found.password
        for text in (found.username, found.os, found.expires_at):
            assert text is None or re.fullmatch(r"[^\x00-\x1f\x7f]{1,128}", text)
    with contextlib.suppress(UnusableAnswerError):
        packages, _ = listed_packages(value)
        assert all(is_ipv4(ip) for package in packages for ip in package.ips)


ASSIGNED: list[Any] = [
    IP,
    f" {IP}\r\n",
    f"Your server has the address {IP}.",
    f"http://{IP}:8006/",
    {"ip": IP},
    {"IP": IP},
    {"IP Address": IP},
    {"assigned_ip": IP},
    {"result": {"server": [{"address": IP}]}},
    {"whatever": IP},
    {"data": json.dumps({"ip": IP})},
    {"ip": IP, "gateway": "103.181.91.1", "dns": ["8.8.8.8", "1.1.1.1"]},
    {"requested_ip": OTHER, "ip": IP},
    {"ip": OTHER, "assigned_ip": IP},
    {"ip": IP, "message": f"{OTHER} was taken, you got {IP}"},
    {"ip": [IP, IP]},
    {"ip": IP, "error": None, "success": True, "status": "active"},
    {"ip": IP, "errors": []},
]


@pytest.mark.parametrize("answer", ASSIGNED, ids=str)
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_the_assigned_address_is_found(answer: Any, times: int) -> None:
    if times or isinstance(answer, str):
        assert assigned_ip(decoded(encoded(answer, times))) == IP


NOT_ASSIGNED: list[tuple[Any, str]] = [
    ("done", "without an IPv4"),
    ("", "without an IPv4"),
    (None, "without an IPv4"),
    (17, "without an IPv4"),
    ({}, "without an IPv4"),
    ({"ip": None}, "without an IPv4"),
    ({"ip": "103.181.91"}, "without an IPv4"),
    ({"ip": "103.181.91.256"}, "without an IPv4"),
    ({"ip": "103.181.91.50.7"}, "without an IPv4"),
    ({"ip": "1103.181.91.50"}, "without an IPv4"),
    ({"ip": "2001:db8::1"}, "without an IPv4"),
    ({"requested_ip": IP}, "without an IPv4"),
    ({"gateway": "103.181.91.1"}, "without an IPv4"),
    (f"{IP} or {OTHER}", "several"),
    ({"ip": [IP, OTHER]}, "several"),
    ({"ip": IP, "address": OTHER}, "several"),
    ({"a": IP, "b": OTHER}, "several"),
    ({"error": f"{IP} was sold a minute ago"}, "reports an error"),
    ({"ip": IP, "success": False}, "reports an error"),
    ({"ip": IP, "status": "failed"}, "reports an error"),
    (f"Error: {IP} is taken", "reports an error"),
    (f"{IP} is not available", "reports an error"),
    (f"{IP} already in use", "reports an error"),
]


@pytest.mark.parametrize(("answer", "why"), NOT_ASSIGNED, ids=str)
def test_an_assigned_address_is_never_guessed(answer: Any, why: str) -> None:
    with pytest.raises(UnusableAnswerError, match=why) as refused:
        assigned_ip(answer)
    assert "103" not in str(refused.value)


ACCESS = {"IP": IP, "Usernane": "root", "Password": SECRET, "OS": "Ubuntu 22.04", "ExpiryDate": "2026-03-01"}
FULL = Access(IP, "root", SECRET, "Ubuntu 22.04", "2026-03-01")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ACCESS, FULL),
        ({key.lower(): value for key, value in ACCESS.items()}, FULL),
        ({"ip": IP, "USERNAME": "root", "pass word": SECRET}, Access(IP, "root", SECRET)),
        ({"Username": "root", "Password": SECRET}, Access(IP, "root", SECRET)),
        ({"Username": "", "Usernane": "root", "Password": SECRET}, Access(IP, "root", SECRET)),
        ({"data": ACCESS}, FULL),
        ({"status": "ok", "data": json.dumps([ACCESS])}, FULL),
        ([ACCESS], FULL),
        ({**ACCESS, "OS": None, "ExpiryDate": ""}, Access(IP, "root", SECRET)),
        ({**ACCESS, "OS": "Ubuntu\x00\n 22.04\x7f"}, FULL),
        ({**ACCESS, "OS": "x" * 500}, Access(IP, "root", SECRET, "x" * 128, "2026-03-01")),
        ({**ACCESS, "ExpiryDate": 1772323200}, Access(IP, "root", SECRET, "Ubuntu 22.04", "1772323200")),
        ({**ACCESS, "OS": {"name": "x"}}, Access(IP, "root", SECRET, None, "2026-03-01")),
        ({**ACCESS, "Password": 123456}, Access(IP, "root", "123456", "Ubuntu 22.04", "2026-03-01")),
        ({**ACCESS, "Password": " spaces matter "}, Access(IP, "root", " spaces matter ", FULL.os, FULL.expires_at)),
        ({**ACCESS, "Password": '"quoted"'}, Access(IP, "root", '"quoted"', FULL.os, FULL.expires_at)),
    ],
    ids=str,
)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_access_is_read_in_every_spelling(answer: Any, expected: Access, times: int) -> None:
    assert access(decoded(encoded(answer, times)), IP) == expected


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"IP": OTHER}, "another address"),
        ({"IP": "103.181.91.5"}, "another address"),
        ({"IP": [IP]}, "another address"),
        ({"Usernane": ""}, "without a username"),
        ({"Usernane": None}, "without a username"),
        ({"Usernane": True}, "without a username"),
        ({"Usernane": " "}, "without a username"),
        ({"Usernane": "ro\x00ot"}, "cannot be one"),
        ({"Usernane": "r" * 129}, "cannot be one"),
        ({"Password": ""}, "without a password"),
        ({"Password": None}, "without a password"),
        ({"Password": [SECRET]}, "without a password"),
        ({"Password": SECRET * 200}, "cannot be one"),
    ],
    ids=str,
)
def test_invalid_access_is_refused_without_showing_it(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableAnswerError, match=why) as refused:
        access({**ACCESS, **change}, IP)
    assert SECRET not in str(refused.value)


def test_access_does_not_show_its_secrets() -> None:
    assert SECRET not in repr(access(ACCESS, IP))


LISTED = {"id": "7", "name": "103.181.91", "status": "active", "ipv4": "2", "ips": [IP, "103.181.91.51"]}
READ = Package("7", "103.181.91", "active", 2, (IP, "103.181.91.51"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, READ),
        ({"id": 7}, READ),
        ({"ipv4": 2}, READ),
        ({"ipv4": "17 "}, Package("7", "103.181.91", "active", 17, READ.ips)),
        ({"ipv4": "many"}, READ),
        ({"ipv4": None}, READ),
        ({"ipv4": -1}, READ),
        ({"ipv4": True}, READ),
        ({"ipv4": "9" * 5000}, READ),
        ({"status": None}, Package("7", "103.181.91", "", 2, READ.ips)),
        ({"ips": None, "ipv4": "0"}, Package("7", "103.181.91", "active", 0, ())),
        ({"ips": [IP, f" {IP} ", "103.181.91.51"]}, READ),
    ],
    ids=str,
)
def test_a_package_is_read(change: dict[str, Any], expected: Package) -> None:
    for times in (1, 2):
        assert listed_packages(decoded(encoded({"packages": [{**LISTED, **change}]}, times))) == ([expected], [])


def test_malformed_parts_are_skipped_and_named() -> None:
    broken = [None, "x", {}, {**LISTED, "name": None}, {**LISTED, "id": {}}, {**LISTED, "ips": "a,b"}]
    partly = {**LISTED, "ips": [IP, "103.181.91", 5, None, "103.181.91.51"]}
    packages, left_out = listed_packages({"packages": [*broken, partly]})
    assert packages == [READ]
    assert left_out == [*(f"the package at position {n}" for n in range(6)), "3 of the addresses of package 7"]


def test_unreadable_stock_is_not_an_empty_stock() -> None:
    assert listed_packages({"packages": []}) == ([], [])
    useless: list[Any] = [{}, {"packages": None}, {"packages": {}}, {"packages": [{}, None]}, None, "sold out"]
    for answer in useless:
        with pytest.raises(UnusableAnswerError):
            listed_packages(answer)
