"""Starts a plain service: a FastAPI application with a database and a bus for as long as it runs."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.plain.bus import Bus, Handle

Database = AsyncDatabase[dict[str, Any]]
Assemble = Callable[[FastAPI, Database, Bus], Handle]


def run(name: str, assemble: Assemble) -> None:
    """Run a service at the port that the environment names, until it is ended."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = AsyncMongoClient[dict[str, Any]](os.environ["PLAIN_MONGODB_URL"], w="majority", tz_aware=True)
        bus = await Bus.connect()
        handle = assemble(app, client[f"{os.environ['PLAIN_DATABASE_PREFIX']}_{name}"], bus)
        await bus.consume(f"plain.{name}", handle)
        yield
        await bus.close()
        await client.close()

    app = FastAPI(lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PLAIN_PORT"]), log_level="error", access_log=False)
