"""The connection of a command to the orders of a stack."""

import contextlib
from collections.abc import AsyncIterator

from operations.commands.approval import policy_of_stack
from operations.console import ConsoleDependencies, Services
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.services import CONSOLE


@contextlib.asynccontextmanager
async def connect(stack: Stack) -> AsyncIterator[ConsoleDependencies]:
    """Connect to the stack with the key of the command. Raises UnreachableError."""
    async with open_mongodb(stack.mongodb_url, purpose="access to the orders", name="ordersaga-orders") as client:
        policy = await policy_of_stack(client[CONSOLE.database_in(stack.database_prefix)])
        services = Services(stack.urls, stack.api_key)
        try:
            yield ConsoleDependencies(
                client, stack.database_prefix, stack.mongodb_url, stack.amqp_url, services, approval_policy=policy
            )
        finally:
            await services.close()
