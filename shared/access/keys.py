"""API keys: `osk_<8 characters of id>_<43 of secret>_<6 of checksum>`.

The prefix and the checksum let scanners of code and logs find a key that leaked, without asking a server. The secret
has 256 random bits, so a fast hash protects it: there is nothing to guess. Pure functions, but for the random ones.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime

from shared.access.permissions import Role, grants_of
from shared.access.principal import Principal

ID_LENGTH = 8
SECRET_LENGTH = 43
"""43 digits of base 62 have a little more than 256 bits."""
CHECKSUM_LENGTH = 6
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY_PATTERN = re.compile(r"osk_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored of a key: everything but the secret."""

    id: str
    sha256: str
    """The SHA-256 of the secret, in hexadecimal digits."""
    role: Role
    owner: str
    name: str
    created: datetime
    subject: str | None = None
    expires: datetime | None = None
    revoked: datetime | None = None

    def principal(self) -> Principal:
        """Return the caller that uses the key."""
        roles = frozenset({self.role})
        return Principal(f"key:{self.id}", self.name, self.owner, self.subject, roles, "key", grants_of(roles))

    def why_invalid(self, now: datetime) -> str | None:
        """Return why the key is no longer valid, None if it is."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else None


def new_key() -> tuple[str, str, str]:
    """Return a new random key, its id, and the SHA-256 of its secret."""
    key_id = "".join(secrets.choice(_DIGITS) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_DIGITS) for _ in range(SECRET_LENGTH))
    body = f"osk_{key_id}_{secret}"
    return f"{body}_{_checksum(body)}", key_id, digest(secret)


def split_key(key: str) -> tuple[str, str] | None:
    """Return the id and the secret of a key; None if it is not one, or was mistyped."""
    found = KEY_PATTERN.fullmatch(key)
    if found is None or _checksum(key[: -CHECKSUM_LENGTH - 1]) != found[3]:
        return None
    return found[1], found[2]


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret, in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(record: KeyRecord, secret: str) -> bool:
    """Return whether this is the secret of the key, in a time that tells nothing about it."""
    return hmac.compare_digest(record.sha256, digest(secret))


def _checksum(text: str) -> str:
    """Return the CRC-32 of a text, in base 62."""
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
