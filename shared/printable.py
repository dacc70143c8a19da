"""Text that came from outside, made safe to print: nothing in it can act on a terminal or on the lines around it."""


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""Return the text with everything that is not printable escaped, as `\x1b` or `\u202e`.

    That is what Unicode calls control, format, surrogate, private-use or unassigned characters, and separators other
    than the space: escape sequences (C0 and C1), bidirectional overrides, zero-width characters, U+2028. A newline is
    escaped too, unless `keep_lines` is given: in a field of one line it would forge the line that follows.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (keep_lines and character == "\n") else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
