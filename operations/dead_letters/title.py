"""The title of a group: what went wrong, in the words of its error. Pure."""

_HOLE, _SHOWN_HOLE = "#", "…"
_FEWEST_WORDS = 2


def title_of(error_type: str, message: str) -> str:
    """Return a title for failures with this error type and message pattern.

    The message alone says more than the name of a class, unless it is a single word, such as the missing key of a
    KeyError.
    """
    text = " ".join(message.replace(_HOLE, _SHOWN_HOLE).split())
    words = [word for word in text.split() if any(character.isalpha() for character in word)]
    if len(words) >= _FEWEST_WORDS:
        return text
    return ": ".join(part for part in (error_type, text) if part) or "unknown error"
