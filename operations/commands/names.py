"""Checks the names of owners and callers that options give."""

import re

import typer

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")


def check_name(option: str, value: str | None) -> None:
    """Raise BadParameter unless the value can name an owner or a caller, or is None."""
    if value is not None and not _NAME.fullmatch(value):
        raise typer.BadParameter("1 to 128 characters are allowed, none of them a control character", param_hint=option)
