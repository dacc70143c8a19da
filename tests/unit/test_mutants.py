"""The faults that are put in on purpose: each still has its place in the code, and is found for its own sake only."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.__main__ import judged
from tests.mutants.copies import PATCHES, ROOT, apply


def changed_files(patch: Path) -> Iterator[str]:
    for line in patch.read_text().splitlines():
        if line.startswith("+++ b/"):
            yield line.removeprefix("+++ b/")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_exactly_and_what_it_makes_is_python(patch: Path, tmp_path: Path) -> None:
    files = list(changed_files(patch))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    apply(patch, tmp_path)
    assert files
    for name in files:
        mutated = (tmp_path / name).read_text()
        assert mutated != (ROOT / name).read_text()
        compile(mutated, name, "exec")


def test_a_seed_that_fails_without_the_fault_has_found_nothing() -> None:
    failed = [{"seed": 7, "violations": ["stock: 1"]}]
    assert judged(failed, lambda _: False) == (True, "seed 7: stock: 1")
    assert judged(failed, lambda seed: seed == 7) == (False, "NOT FOUND: seed 7 fails without the fault as well")
    assert judged([], lambda _: False) == (False, "NOT FOUND")
