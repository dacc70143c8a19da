"""Prints the events of all orders, and continues where it stopped: it keeps its place in the stream in a file.

    python event_consumer.py amqp://READER:PASSWORD@HOST:5672/ordersaga events.offset

It needs aio-pika, and a user of the broker who may read the stream (docs/event-stream.md). Each event is handled at
least once: after a crash, the last one may come again.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.exceptions import AMQPError


async def handle(offset: int, event: str, body: dict[str, Any]) -> None:
    """Do something with an event; this is the place for your own code."""
    print(offset, event, body.get("orderId"), flush=True)


def read_body(content: bytes) -> dict[str, Any] | None:
    """Return the body of a message, or None if it is not a JSON object: anyone with the right can publish anything."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def read_place(file: Path) -> int | str:
    """Return where to begin: after the last event that was handled, or with the first one that the stream has."""
    with contextlib.suppress(FileNotFoundError):
        return int(file.read_text()) + 1
    return "first"


def keep_place(file: Path, offset: int) -> None:
    """Replace the file in one step, so that it is never half written."""
    written = file.with_suffix(".new")
    written.write_text(str(offset))
    written.replace(file)


async def consume(url: str, file: Path) -> None:
    """Handle events until the connection is lost."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)  # a stream requires it
        stream = await channel.get_queue("ordersaga.events", ensure=False)
        async with stream.iterator(arguments={"x-stream-offset": read_place(file)}) as messages:
            async for message in messages:
                offset = int(str(message.headers["x-stream-offset"]))
                event, body = message.routing_key or "", read_body(message.body)
                if body is None:
                    print(f"skipped {event} at offset {offset}: its body is not a JSON object", file=sys.stderr)
                else:
                    await handle(offset, event, body)
                keep_place(file, offset)
                await message.ack()  # only asks for more: the stream keeps its events


async def main(url: str, file: Path) -> None:
    """Consume, and connect again whenever the broker was away."""
    while True:
        try:
            await consume(url, file)
        except (AMQPError, OSError) as error:
            print(f"the broker is away: {error}", file=sys.stderr)
        await asyncio.sleep(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
