"""Commands of `ordersaga` in this process: a process of their own takes a second to import what tests have imported."""

import asyncio
from collections.abc import Mapping

from typer.testing import CliRunner

from operations import cli
from operations.commands.failures import status_of
from operations.errors import CommandError


async def run_command(*words: str, environment: Mapping[str, str], answer: str = "") -> tuple[int, str, str]:
    """Run `ordersaga words` to its end, one at a time; its exit status, what it printed and its errors."""
    runner = CliRunner(env=environment)
    result = await asyncio.to_thread(runner.invoke, cli.build_application(words), words, input=answer)
    if isinstance(result.exception, CommandError):
        return status_of(result.exception), result.stdout, f"{result.stderr}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
