"""Forms that the console rejects before any handler, and that rejecting them is cheap."""

import time
from http import HTTPStatus
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.console.bodies import MOST_EDITED
from operations.console.form_limits import MOST_BYTES_OF_A_FIELD, MOST_FIELDS, refuse_form

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
UNSUPPORTED, TOO_LARGE, UNPROCESSABLE = 415, 413, 422


def part(value: bytes, name: str = "body", headers: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n{headers}\r\n'.encode() + value + b"\r\n"


def multipart(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def status(content_type: str, body: bytes) -> HTTPStatus | None:
    refused = refuse_form(content_type, body)
    return refused.status if refused else None


@pytest.mark.parametrize("name", ["utf-8", "UTF-8", "utf8", '"utf-8"'])
def test_utf_8_is_accepted_however_it_is_written(name: str) -> None:
    assert status(f"{FORM}; charset={name}", b"by=op") is None
    assert status(f"{MULTIPART}; charset={name}", multipart(part(b"{}"))) is None
    assert status(MULTIPART, multipart(part(b"{}", headers=f"Content-Type: text/plain; charset={name}\r\n"))) is None


@pytest.mark.parametrize("name", ["punycode", "utf-7", "latin-1", "idna", "zlib", "rot13", "utf-16", "no-such"])
def test_other_charsets_are_refused_wherever_they_are_named(name: str) -> None:
    plain = multipart(part(b"{}"))
    declared = multipart(part(b"{}", headers=f"Content-Type: text/plain; charset={name}\r\n"))
    assert status(f"{FORM}; charset={name}", b"by=op") == UNSUPPORTED
    assert status(f"{MULTIPART}; charset={name}", plain) == UNSUPPORTED
    assert status(MULTIPART, declared) == UNSUPPORTED
    assert status(FORM, urlencode({"_charset_": name}).encode()) == UNSUPPORTED
    assert status(MULTIPART, multipart(part(name.encode(), "_charset_"))) == UNSUPPORTED


@pytest.mark.parametrize("charset", ["punycode", "utf-8"])
def test_the_largest_body_is_decided_at_once(charset: str) -> None:
    body = multipart(part(bytes(range(128, 256)) * 1600, headers=f"Content-Type: text/plain; charset={charset}\r\n"))
    started = time.process_time()
    refuse_form(f"{MULTIPART}; charset={charset}", body)
    refuse_form(MULTIPART, body)
    assert time.process_time() - started < 1


def test_a_large_field_is_refused_and_the_largest_that_can_be_edited_is_not() -> None:
    assert MOST_EDITED < MOST_BYTES_OF_A_FIELD
    assert status(MULTIPART, multipart(part(b"x" * MOST_EDITED))) is None
    assert status(MULTIPART, multipart(part(b"x" * (MOST_BYTES_OF_A_FIELD + 1)))) == TOO_LARGE
    assert status(FORM, b"body=" + b"x" * MOST_EDITED) is None
    assert status(FORM, b"body=" + b"x" * MOST_BYTES_OF_A_FIELD) == TOO_LARGE


def test_many_fields_are_refused() -> None:
    assert status(FORM, b"&".join([b"a=1"] * MOST_FIELDS)) is None
    assert status(FORM, b"&".join([b"a=1"] * (MOST_FIELDS + 1))) == UNPROCESSABLE
    assert status(FORM, b";" * 200_000) == UNPROCESSABLE
    assert status(MULTIPART, multipart(*[part(b"1", f"f{n}") for n in range(MOST_FIELDS)])) is None
    assert status(MULTIPART, multipart(*[part(b"1", f"f{n}") for n in range(MOST_FIELDS + 1)])) == UNPROCESSABLE


def test_anything_but_a_form_is_refused() -> None:
    assert status("application/json", b"{}") == UNSUPPORTED
    assert status("multipart/form-data", multipart(part(b"1"))) == UNPROCESSABLE
    assert status(MULTIPART, b"nonsense") == UNPROCESSABLE
    assert status("", b"") is None


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.binary(max_size=300))
def test_no_input_raises(options: str, body: bytes) -> None:
    for content_type in (options, f"{FORM}; {options}", f"{MULTIPART}; {options}"):
        refuse_form(content_type, body)
        refuse_form(content_type, b"--b\r\n" + body)
        refuse_form(content_type, multipart(part(body)))
