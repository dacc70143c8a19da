"""The commands `ordersaga backup` and `restore`, and what is in the databases before and after."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo

from operations.backup.taking import copied_collections
from tests.support import warm_processes

INTERRUPTED_RESTORE = """
import os, sys
from operations import cli
from operations.commands import backup

restore, number = backup.restore_records, int(sys.argv.pop(1))

def interrupted(*given, on_progress, **named):
    return restore(*given, on_progress=lambda _documents: os.kill(os.getpid(), number), **named)

backup.restore_records = interrupted
cli.main()
"""
"""Restores until the first documents are written; then it gets a signal."""

Records = dict[str, dict[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Commands:
    """The command line, for the stack of a test."""

    mongodb_url: str
    amqp_url: str
    database_prefix: str
    settings: dict[str, str]

    async def run(self, *words: str, answer: str = "") -> tuple[int, str]:
        """Run a command; return its exit status, and what it printed, errors included."""
        status, printed, _ = await warm_processes.run(
            "operations.cli", *words, environment=self._environment(), answer=answer, together=True
        )
        return status, printed

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        return environment | {
            "ORDERSAGA_MONGODB_URL": self.mongodb_url,
            "ORDERSAGA_AMQP_URL": self.amqp_url,
            "ORDERSAGA_DATABASE_PREFIX": self.database_prefix,
            "ORDERSAGA_OPERATOR": "ada",
            **self.settings,
        }

    async def interrupted_restore(self, directory: Path, number: signal.Signals) -> tuple[int | None, str]:
        """Restore a backup, and send the command a signal when it has written the first documents."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INTERRUPTED_RESTORE, str(int(number)), "restore", str(directory), "--yes"),
            env=self._environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        return process.returncode, printed.decode()

    async def must(self, *words: str) -> dict[str, Any]:
        """Run a command with --json that must succeed; return its document."""
        status, printed = await self.run(*words, "--json")
        assert status == 0, printed
        document: dict[str, Any] = json.loads(printed[printed.index("{") :])
        return document


def commands_for(mongodb_url: str, amqp_url: str, prefix: str, **settings: object) -> Commands:
    """Return the command line for these servers; `settings` by their names without the prefix."""
    named = {f"ORDERSAGA_{name.upper()}": str(value) for name, value in settings.items()}
    return Commands(mongodb_url, amqp_url, prefix, named)


async def records_of_stack(mongodb_url: str, prefix: str) -> Records:
    """Return all records that a backup has, by collection and id; collections without any are left out."""
    found: Records = {}
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        for database, names in copied_collections(prefix).items():
            for name in names:
                if records := {record["_id"]: record async for record in client[database][name].find()}:
                    found[f"{database}.{name}"] = records
    return found


def files_in(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory."""
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}
