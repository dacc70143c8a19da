"""What is wrong with a field, in our own words: the validator's may change with its release. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BeforeValidator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError, PydanticKnownError

from shared.clock import in_utc

MAX_NAME = 100
"""The most characters of a name that is repeated in an answer: clients may send names of any length."""

_PLACES = ("body", "query", "path", "header")
_WITHOUT_CONTROLS = re.compile(r"\^\[\^\\x00-\S*\]\{(\d+),(\d+)\}\$")
_NUMBER = re.compile(r"\s*[+-]?[0-9]*\.?[0-9]+\s*")
_PATTERNS = {
    r"^[A-Za-z0-9_-]{1,64}$": "must have 1 to 64 letters, digits, hyphens and underscores",
    r"^[A-Za-z0-9_.:-]{1,64}$": "must have 1 to 64 letters, digits and characters of ._:-",
    r"^[A-Z]{3}$": "must be the code of a currency in capitals, such as USD",
    r"^slot:(0|[1-9][0-9]{0,11})$": "must be the id of a slot, such as slot:1893456000",
    r"^(auto|slot:(0|[1-9][0-9]{0,11}))$": "must be auto, or the id of a slot such as slot:1893456000",
    r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+$": "must be an e-mail address",
    r"^[0-9+()./ -]{1,40}$": "must have 1 to 40 digits, spaces and characters of +()./-",
}
_OTHERWISE = "is not valid"
_OF_FIELD: Final = "wrong_field"
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "none_required": "must be null",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "list_type": "must be an array",
    "tuple_type": "must be an array",
    "set_type": "must be an array",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "json_invalid": "is not JSON",
    "json_type": "must be JSON",
    "datetime_type": "must be a time as in RFC 3339, such as 2026-11-29T12:00:00Z",
    "datetime_parsing": "must be a time as in RFC 3339, such as 2026-11-29T12:00:00Z",
    "datetime_from_date_parsing": "must be a time as in RFC 3339, such as 2026-11-29T12:00:00Z",
    "datetime_object_invalid": "must be a time as in RFC 3339, such as 2026-11-29T12:00:00Z",
    "timezone_aware": "must be a time with a zone, such as 2026-11-29T12:00:00Z",
    "url_type": "must be a URL",
    "url_parsing": "must be a URL",
    "url_syntax_violation": "must be a URL",
    "url_too_long": "must have at most {max_length} characters",
    "url_scheme": "must be a URL that begins with {expected_schemes}",
    "uuid_type": "must be a UUID",
    "uuid_parsing": "must be a UUID",
}


def wrong_field(field: str, message: str) -> PydanticCustomError:
    """Return the error that a validator of a whole object raises about one field of it."""
    return PydanticCustomError(_OF_FIELD, "{field}: {message}", {"field": field, "message": message})


def refuse_number(given: object) -> object:
    """Refuse a number as a time: the validator takes it for seconds since 1970, so that the year 2026 is in 1970."""
    if isinstance(given, int | float) or (isinstance(given, str) and _NUMBER.fullmatch(given)):
        raise PydanticKnownError("datetime_parsing", {"error": "it is a number"})
    return given


Moment = Annotated[AwareDatetime, BeforeValidator(refuse_number), AfterValidator(in_utc)]
"""A time of a request with its zone, in UTC."""


def explained(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Return the field that an error of the validator is about, and what is wrong with it."""
    inner = (str(problem["ctx"]["field"]),) if problem["type"] == _OF_FIELD else ()
    return field_name((*problem["loc"], *inner)), message_of(problem)


def message_of(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a field, for an error as the validator reports it."""
    context = problem.get("ctx") or {}
    match problem["type"]:
        case "value_error":
            return str(context.get("error", _OTHERWISE))
        case "wrong_field":
            return str(context["message"])
        case "string_pattern_mismatch":
            return _of_pattern(str(context.get("pattern", "")))
    words = _WORDS.get(problem["type"], _OTHERWISE)
    try:
        return _singular(words.format(**context))
    except (KeyError, IndexError):
        return _OTHERWISE


def field_name(location: Sequence[str | int]) -> str:
    """Return a field's name as clients know it, such as `items[0].quantity`, without its part of the request."""
    place, parts = (location[0], location[1:]) if location and location[0] in _PLACES else ("", location)
    name = ""
    for part in parts:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part != "[key]":  # the validator's mark for a name that is wrong itself
            text = _SPELLINGS.get(place, str)(part)[:MAX_NAME]
            name += f".{text}" if name else text
    return name or "body"


def header_name(name: str) -> str:
    """Return the name of a header in its usual spelling."""
    return "-".join(word.capitalize() for word in name.split("-"))


_SPELLINGS: Mapping[str | int, Callable[[str], str]] = {"path": to_camel, "header": header_name}


def without_consequences(problems: Sequence[Any]) -> list[Any]:
    """Leave out that a list is too short if it is only because elements of it are invalid."""
    around = {tuple(problem["loc"][:length]) for problem in problems for length in range(len(problem["loc"]))}
    return [p for p in problems if p["type"] != "too_short" or tuple(p["loc"]) not in around]


def _of_pattern(pattern: str) -> str:
    if found := _WITHOUT_CONTROLS.fullmatch(pattern):
        return f"must have {found[1]} to {found[2]} characters, and no control characters"
    return _PATTERNS.get(pattern, f"must match the pattern {pattern}")


def _singular(words: str) -> str:
    return re.sub(r"\b(least|most) 1 (characters|entries)$", lambda m: f"{m[1]} 1 {_ONE[m[2]]}", words)


_ONE = {"characters": "character", "entries": "entry"}
