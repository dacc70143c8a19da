"""Rejects forms that are too expensive to decode, before any handler runs or charset is used. Pure.

Browsers send every form of the console as UTF-8. Other charsets are rejected unread: some of Python's codecs take
seconds of CPU time for a few hundred kilobytes, and block the process meanwhile.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple, NoReturn
from urllib.parse import unquote_plus

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MOST_FIELDS = 32
MOST_BYTES_OF_A_FIELD = 210 * 1024
"""More than `MOST_EDITED`, the largest text that the console offers to edit."""

URLENCODED, MULTIPART = b"application/x-www-form-urlencoded", b"multipart/form-data"
CHARSET_FIELD = "_charset_"
"""The field in which browsers send the charset of a form, if the form has a field with this name."""

_UTF_8 = frozenset({"utf-8", "utf8"})
_SEPARATORS = re.compile(rb"[&;]")


class Refusal(NamedTuple):
    """The reason to reject a form, and the HTTP status."""

    status: HTTPStatus
    detail: str


class _FormRefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def refuse_form(content_type: str, body: bytes) -> Refusal | None:
    """Return why a form is rejected (content type, charset, number or size of fields), None if it is accepted."""
    kind, options = parse_options_header(content_type)
    try:
        _check_charset(options, "form")
        if kind == URLENCODED:
            _check_urlencoded(body)
        elif kind == MULTIPART:
            _check_multipart(options.get(b"boundary", b""), body)
        elif body:
            _refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The Content-Type is {_shown(kind)!r}: send a form")
    except _FormRefusedError as error:
        return error.refusal
    return None


def _check_urlencoded(body: bytes) -> None:
    fields = _SEPARATORS.split(body, MOST_FIELDS + 1)
    _check_number(len(fields))
    for field in fields:
        name, _, value = field.partition(b"=")
        _check_size(len(field))
        _check_charset_field(unquote_plus(name[:100].decode("latin-1")), value[:100])


def _check_multipart(boundary: bytes, body: bytes) -> None:
    if not boundary:
        _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, "The multipart form has no boundary")
    try:
        parser = MultipartParser(boundary, _Parts().callbacks())  # type: ignore[arg-type]  # its callbacks are a TypedDict
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"The form cannot be parsed: {error}")


class _Parts:
    """Checks the parts of a multipart form during parsing, without storing their content."""

    def __init__(self) -> None:
        self._number = 0
        self._header = b""
        self._value = b""
        self._name = ""
        self._size = 0
        self._beginning = b""

    def callbacks(self) -> Mapping[str, object]:
        """Return the parser's callbacks by event name."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._end_header,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._number += 1
        _check_number(self._number)
        self._name, self._size, self._beginning = "", 0, b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        _, options = parse_options_header(self._value)
        if self._header.lower() == b"content-disposition":
            self._name = options.get(b"name", b"").decode("latin-1")
        elif self._header.lower() == b"content-type":
            _check_charset(options, f"field {_shown(self._name)!r}")
        self._header = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        _check_size(self._size)
        if len(self._beginning) < 100:
            self._beginning += data[start : min(end, start + 100)]

    def _end(self) -> None:
        _check_charset_field(self._name, self._beginning)


def _check_charset(options: Mapping[bytes, bytes], where: str) -> None:
    charset = options.get(b"charset")
    if charset is not None and _shown(charset).strip().lower() not in _UTF_8:
        detail = f"The charset of the {where} is {_shown(charset)!r}: only utf-8 is accepted"
        _refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)


def _check_charset_field(name: str, value: bytes) -> None:
    if name == CHARSET_FIELD and value:
        _check_charset({b"charset": value}, f"field {CHARSET_FIELD}")


def _check_number(fields: int) -> None:
    if fields > MOST_FIELDS:
        _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"The form has more than {MOST_FIELDS} fields")


def _check_size(size: int) -> None:
    if size > MOST_BYTES_OF_A_FIELD:
        detail = f"A field of the form is larger than {MOST_BYTES_OF_A_FIELD // 1024} KiB"
        _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def _refuse(status: HTTPStatus, detail: str) -> NoReturn:
    raise _FormRefusedError(Refusal(status, detail))


def _shown(text: str | bytes) -> str:
    shown = text if isinstance(text, str) else text.decode("latin-1")
    return shown[:100]
