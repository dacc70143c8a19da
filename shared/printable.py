"""Makes foreign text safe to print: it cannot control the terminal or change the lines around it."""


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""Return the text with everything that is not printable escaped, as `\x1b` or `\u202e`.

    Not printable are control, format, surrogate, private-use and unassigned characters in Unicode's terms, and
    separators other than the space: escape sequences (C0 and C1), bidirectional overrides, zero-width characters,
    U+2028. Newlines are escaped too unless `keep_lines` is set: in a one-line field they would forge the next line.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (keep_lines and character == "\n") else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
