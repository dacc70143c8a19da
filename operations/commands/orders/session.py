"""The connection of a command to the orders of a stack."""

import contextlib
from collections.abc import AsyncIterator

from operations.commands.approval import policy_of_stack
from operations.commands.orders.desk import OrderDesk
from operations.commands.orders.local_desk import LocalDesk
from operations.commands.orders.remote_desk import RemoteDesk
from operations.commands.remote.api import open_api
from operations.console import ConsoleDependencies, Services
from operations.reading.connection import open_mongodb
from operations.settings import RemoteStack, Stack
from shared.services import CONSOLE


@contextlib.asynccontextmanager
async def open_desk(target: Stack | RemoteStack) -> AsyncIterator[OrderDesk]:
    """Connect to the stack, or to the console alone. Raises UnreachableError."""
    if isinstance(target, RemoteStack):
        async with open_api(target) as api:
            yield RemoteDesk(api)
    else:
        async with connect(target) as dependencies:
            yield LocalDesk(target, dependencies)


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
