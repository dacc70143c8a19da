"""What a search for an id finds, where it looked, and where it may not look. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.access.permissions import Permission


class Hit(NamedTuple):
    """Something that was found; `address` is its page, or None if it has none.

    An exact hit is the thing itself, others are lists of what names it, or what begins so.
    """

    what: str
    name: str
    address: str | None
    detail: str = ""
    exact: bool = True


class Place(NamedTuple):
    """Where a search looked, why it could not if it could not, and the permission that it would need if not allowed."""

    name: str
    failed: str | None = None
    needs: Permission | None = None


class Found(NamedTuple):
    """All hits, and all places."""

    hits: Sequence[Hit]
    places: Sequence[Place]

    @property
    def looked_in(self) -> list[str]:
        """The places in which it looked."""
        return [place.name for place in self.places if place.failed is None and place.needs is None]

    @property
    def only_page(self) -> str | None:
        """The page of the only thing that has exactly this id; None if there is another hit that a person may mean."""
        pages = {hit.address for hit in self.hits if hit.exact}
        return pages.pop() if len(pages) == 1 else None

    def as_json(self) -> dict[str, Any]:
        """Return the result as the operations API shows it."""
        return {
            "hits": [
                {"what": hit.what, "name": hit.name, "detail": hit.detail, "exact": hit.exact, "page": hit.address}
                for hit in self.hits
            ],
            "lookedIn": self.looked_in,
            "notLookedIn": [
                {"name": place.name, "failed": place.failed, "needs": place.needs}
                for place in self.places
                if place.failed is not None or place.needs is not None
            ],
        }


def without_repeats(hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits, exact ones first, each page once: an order and its payment lead to the same page."""
    kept: dict[object, Hit] = {}
    for hit in sorted(hits, key=lambda hit: not hit.exact):
        kept.setdefault(hit.address or (hit.what, hit.name), hit)
    return list(kept.values())
