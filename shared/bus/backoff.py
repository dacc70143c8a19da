"""The pauses between attempts to use a server that is away: doubling from 0.1 s to 2 s."""


class Backoff:
    """The pauses of one series of attempts, in seconds."""

    def __init__(self, first: float = 0.1, longest: float = 2.0) -> None:
        self._first = first
        self._longest = longest
        self._upcoming = first

    def next(self) -> float:
        """Return the length of the next pause."""
        current, self._upcoming = self._upcoming, min(self._upcoming * 2, self._longest)
        return current

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._upcoming = self._first
