"""Skips the tests of the containers where there is no engine to run them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.containers import engine_answers


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark each test of this folder, which makes one line a file of what would be one a test."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and not engine_answers():
        for item in here:
            item.add_marker(pytest.mark.skip(reason="no Docker engine answers"))
