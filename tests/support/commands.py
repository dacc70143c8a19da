"""Commands of `ordersaga` in this process: a process of their own takes a second to import what tests have imported."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

import pytest
from typer.testing import CliRunner

from operations import cli


async def run_command(*words: str, environment: Mapping[str, str], answer: str = "") -> tuple[int, str, str]:
    """Run `ordersaga words` to its end, one at a time; its exit status, what it printed and its errors.

    Of the settings of ordersaga it knows those in `environment` alone, whatever the tests themselves were started with.
    """
    return await asyncio.to_thread(_run, words, environment, answer)


def _run(words: Sequence[str], environment: Mapping[str, str], answer: str) -> tuple[int, str, str]:
    own = {name: None for name in os.environ if name.startswith("ORDERSAGA_")}
    with CliRunner().isolation(answer, {**own, **environment}) as (stdout, stderr, _):
        with pytest.raises(SystemExit) as ended:
            cli.run(words)
        status = ended.value.code or 0
        assert isinstance(status, int), status
        sys.stdout.flush()
        sys.stderr.flush()
        return status, stdout.getvalue().decode(), stderr.getvalue().decode()
