"""Clients that a public generator makes of the published documents."""

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.api_samples import ROOT, document_path

GENERATOR = ROOT / ".venv/.tools/bin/openapi-python-client"


def generate(name: str, folder: Path) -> str:
    """Generate a client of a process's document into a package in the folder; return the package's name."""
    assert GENERATOR.exists(), "run `make setup-tests`"
    package = f"generated_{name}_client"
    (folder / "config.yml").write_text("post_hooks: []\n")
    command: list[str | Path] = [GENERATOR, "generate", "--meta", "none", "--path", ROOT / document_path(name)]
    command += ["--output-path", folder / package, "--config", folder / "config.yml"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout + run.stderr, run.stdout + run.stderr
    return package


@contextlib.contextmanager
def generated(name: str, folder: Path) -> Iterator[Callable[[str], Any]]:
    """Generate a client of a process's document; yield what imports its modules, of which "" is the package itself."""
    package = generate(name, folder)
    sys.path.insert(0, str(folder))
    try:
        yield lambda module: importlib.import_module(f"{package}.{module}" if module else package)
    finally:
        sys.path.remove(str(folder))
