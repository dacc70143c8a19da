"""How long to wait before the next try of something that is away: doubling from 0.1 s to 2 s."""


class Backoff:
    """The waits of one series of tries, in seconds."""

    def __init__(self, first: float = 0.1, longest: float = 2.0) -> None:
        self._first = first
        self._longest = longest
        self._upcoming = first

    def next(self) -> float:
        """How long to wait now."""
        current, self._upcoming = self._upcoming, min(self._upcoming * 2, self._longest)
        return current

    def reset(self) -> None:
        """Start over with the shortest wait: it worked."""
        self._upcoming = self._first
