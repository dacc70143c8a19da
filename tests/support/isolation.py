"""Runs a test with a network and mounts of its own, in a thread: the other tests keep those of the machine."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

import pytest

from chaos import namespaces


def isolated(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test so; what it starts is in the same network. It is skipped where that needs rights that are missing."""

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        def in_thread() -> None:
            namespaces.enter()
            asyncio.run(test(*arguments, **named))

        with ThreadPoolExecutor(1) as thread:
            try:
                thread.submit(in_thread).result()
            except namespaces.NamespaceError as error:
                pytest.skip(str(error))

    return run
