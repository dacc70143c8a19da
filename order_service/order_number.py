"""The number of an order for people: eight letters and digits, such as `7ZK4-M2QX`, that can be read out and typed.

It is the first 40 bits of the order's id, which are random, in Crockford's Base32 (https://www.crockford.com/base32.html,
without I, L, O and U). So it needs no counter and no index: looking one up is a range of ids. Two orders share a number
about once in a million orders; a lookup finds both.
"""

import re

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_HEX_DIGITS = 10
_LENGTH = 8
_VALUES = {symbol: value for value, symbol in enumerate(ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_ID = re.compile(r"[0-9a-f]{32}")


def order_number(order_id: str) -> str | None:
    """Return the number of an order, None for an id that is not 32 hexadecimal digits."""
    if not _ID.fullmatch(order_id):
        return None
    value = int(order_id[:_HEX_DIGITS], 16)
    symbols = "".join(ALPHABET[value >> shift & 31] for shift in range(35, -1, -5))
    return f"{symbols[:4]}-{symbols[4:]}"


def ids_of(number: str) -> tuple[str, str]:
    """Return the first and the last id that an order with this number can have.

    Hyphens, spaces and small letters are accepted, and O for 0, I and L for 1. Raises ValueError for anything else.
    """
    symbols = re.sub(r"[\s-]", "", number).upper()
    if len(symbols) != _LENGTH or not all(symbol in _VALUES for symbol in symbols):
        raise ValueError(f"{number[:40]!r} is not an order number such as 7ZK4-M2QX")
    value = 0
    for symbol in symbols:
        value = value << 5 | _VALUES[symbol]
    first = f"{value:010x}"
    return first + "0" * 22, first + "f" * 22
