"""A process that runs one replay and ends, for tests that kill it.

Run as `python -m tests.support.replay_worker REPLAY_ID`.
"""

import asyncio
import sys

from pymongo import AsyncMongoClient

from operations.dead_letters.replaying import Replayer
from operations.dead_letters.replays import ReplayRecords
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.database import Document
from shared.failure_points import kill_at
from shared.settings import ServiceSettings


async def main(replay_id: str) -> None:
    settings = ServiceSettings()
    async with AsyncMongoClient[Document](settings.mongodb_url, tz_aware=True, w="majority") as client:
        database = client[f"{settings.database_prefix}_operations"]
        bus = RabbitBus(settings.amqp_url)
        await bus.start(None)
        replay = await ReplayRecords(database).acquire("worker", replay_id)
        assert replay is not None
        await Replayer(database, Publisher(bus), failpoint=kill_at(settings.crash_at)).run(replay, "worker")
        await bus.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
