"""An endpoint: where an owner wants to hear of events, and which. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from notification_service.addresses import host_objection, is_host_name
from notification_service.events import Event, matches

DISABLE_AFTER = timedelta(days=5)
"""The time without a success after which a failing endpoint is disabled."""
BOTH_SECRETS_FOR = timedelta(hours=24)
"""The time for which a replaced secret still signs."""
MAX_SECRETS = 5
"""The most secrets that sign at the same time."""
MAX_URL = 2000

GONE = "It answered 410 Gone"
FAILING = f"No delivery succeeded for {DISABLE_AFTER.days} days"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that signs, encrypted; one that was replaced expires."""

    sealed: bytes
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as it is recorded."""

    id: str
    url: str
    events: tuple[str, ...]
    secrets: tuple[Secret, ...]
    """The newest first."""
    created_at: datetime
    updated_at: datetime
    owner_id: str | None = None
    user_id: str | None = None
    """The only person whose orders it hears of; None for all of the owner's."""
    description: str | None = None
    for_staff: bool = False
    """True if staff registered it: it hears of events that belong to no owner."""
    enabled: bool = True
    disabled_reason: str | None = None
    """Why it was disabled, unless its owner disabled it."""
    disabled_at: datetime | None = None
    failing_since: datetime | None = None
    """The first failure since the last success."""

    def wants(self, event: Event) -> bool:
        """Return whether the endpoint asked for the event and may hear of it."""
        if not any(matches(pattern, event.type) for pattern in self.events):
            return False
        if event.for_staff:
            return self.for_staff
        return self.owner_id == event.owner_id and self.user_id in (None, event.user_id)

    def signing_secrets(self, now: datetime) -> list[bytes]:
        """Return the secrets that sign now, encrypted, the newest first."""
        return [each.sealed for each in self.secrets if each.expires_at is None or each.expires_at > now]

    def has_failed_too_long(self, now: datetime) -> bool:
        """Return whether a failure now disables the endpoint."""
        return self.failing_since is not None and now - self.failing_since >= DISABLE_AFTER


def with_new_secret(secrets: Sequence[Secret], sealed: bytes, now: datetime) -> tuple[Secret, ...] | None:
    """Return the secrets with a new one; the ones before sign for a day more. None if too many still sign."""
    kept = tuple(
        Secret(each.sealed, each.created_at, each.expires_at or now + BOTH_SECRETS_FOR)
        for each in secrets
        if each.expires_at is None or each.expires_at > now
    )
    return (Secret(sealed, now), *kept) if len(kept) < MAX_SECRETS else None


def check_url(url: str, *, allow_private: bool) -> str:
    """Return the URL of an endpoint. Raises ValueError for one that nothing is sent to.

    This is about its form: the addresses behind its name are checked at each attempt, when it connects.
    """
    if len(url) > MAX_URL or not url.isprintable() or not url.isascii() or " " in url:
        raise ValueError(f"must be at most {MAX_URL} printable characters of ASCII, without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise ValueError("must begin with https://")
    if not parts.hostname or port == 0 or not ("[" in parts.netloc or is_host_name(parts.hostname)):
        raise ValueError("must name a host")
    if (objection := host_objection(parts.hostname, allow_private=allow_private)) is not None:
        raise ValueError(objection)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have a user or password: verify the signature instead")
    if parts.fragment:
        raise ValueError("must not have a fragment")
    return url
