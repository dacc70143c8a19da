"""The two Python clients behind one face, so that each test of one is a test of the other."""

import asyncio
from typing import Any, Literal

import httpx

from ordersaga_client import AsyncClient, Client

Kind = Literal["sync", "async"]


async def call(kind: Kind, method: str, *arguments: Any, client: dict[str, Any], **options: Any) -> Any:
    """Call a method such as `orders.place` of a client made from these arguments; of an iterator, return the list.

    No certificates are loaded, which would take most of the time.
    """
    area, name = method.split(".")
    if kind == "sync":
        return await asyncio.to_thread(_call, area, name, arguments, client, options)
    async with httpx.AsyncClient(verify=False) as http, AsyncClient(**client, http=http) as opened:
        result = getattr(getattr(opened, area), name)(*arguments, **options)
        return [each async for each in result] if hasattr(result, "__aiter__") else await result


def _call(area: str, name: str, arguments: tuple[Any, ...], client: dict[str, Any], options: dict[str, Any]) -> Any:
    with httpx.Client(verify=False) as http, Client(**client, http=http) as opened:
        result = getattr(getattr(opened, area), name)(*arguments, **options)
        return list(result) if hasattr(result, "__next__") else result
