"""Time and random ids that are the same in every run, for pages that are compared with a stored text or picture."""

import hashlib
import itertools
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.clock import Clock, utc_now

_PRODUCT = ("operations", "shared")


@contextmanager
def frozen(clock: Clock) -> Iterator[None]:
    """Give this clock, and a fixed series of random ids, to the modules of the console and of `shared`."""
    numbers = itertools.count()

    def next_id() -> uuid.UUID:
        return uuid.UUID(bytes=hashlib.sha256(b"%d" % next(numbers)).digest()[:16])

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in _PRODUCT or name == utc_now.__module__:
                continue
            for attribute, still in (("utc_now", clock), ("uuid4", next_id)):
                if hasattr(module, attribute):
                    patch.setattr(module, attribute, still)
        yield
