"""The services, one row each. Ports, databases, inboxes, the stack and the console's pages derive from these rows.

Only strings and numbers, so that every package may read them. What cannot derive from them (docker-compose.yml,
Prometheus, the image, documents) is compared with them by tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Process:
    """A program that answers HTTP: `python -m <package>` starts it."""

    name: str
    package: str
    port: int
    """The port it listens on unless ORDERSAGA_HTTP_PORT names another."""
    settings: str
    """The class of its settings, as `module:Class`."""

    @property
    def url_variable(self) -> str:
        """The environment variable that other processes read its address from."""
        return f"ORDERSAGA_{self.name.upper()}_URL"

    @property
    def default_url(self) -> str:
        """Its address on this machine, with the default port."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Service(Process):
    """A process of the product: it has a database and takes messages."""

    database: str
    """Its database's name after the prefix."""
    inbox: str
    """The queue that it consumes."""
    description: str
    """One sentence for its OpenAPI document."""
    can_be_paused: bool = True
    """Whether an operator may pause the consumption of its inbox."""
    partitioned_by: Literal["order", "product"] | None = None
    """What stays together when ORDERSAGA_PARTITIONS divides its inbox; None if that inbox stays whole."""

    @property
    def user(self) -> str:
        """The name of its user in RabbitMQ and in MongoDB."""
        return self.inbox.removesuffix(".inbox")

    def database_in(self, prefix: str) -> str:
        """Return the name of its database in the stack with this prefix."""
        return f"{prefix}_{self.database}"


ORDER = Service(
    name="order",
    package="order_service",
    port=3008,
    settings="order_service.settings:OrderSettings",
    database="orders",
    inbox="order.inbox",
    description="Takes orders and carries each to its end",
    partitioned_by="order",
)
GRPC_PORT = 3018
"""The usual port of gRPC, which the order service serves if ORDERSAGA_GRPC_PORT is set."""
INVENTORY = Service(
    name="inventory",
    package="inventory_service",
    port=3009,
    settings="inventory_service.settings:InventorySettings",
    database="inventory",
    inbox="inventory.inbox",
    description="Holds stock for orders, all that each asks for or nothing",
    partitioned_by="product",
)
PAYMENT = Service(
    name="payment",
    package="payment_service",
    port=3010,
    settings="payment_service.settings:PaymentSettings",
    database="payments",
    inbox="payment.inbox",
    description="Charges orders once, returns the money of those that do not go through, and keeps the books of funds",
    partitioned_by="order",
)
PROVISIONING = Service(
    name="provisioning",
    package="provisioning_service",
    port=3011,
    settings="provisioning_service.settings:ProvisioningSettings",
    database="provisioning",
    inbox="provisioning.inbox",
    description="Buys the servers that orders ask for",
)
NOTIFICATION = Service(
    name="notification",
    package="notification_service",
    port=3014,
    settings="notification_service.settings:NotificationSettings",
    database="notifications",
    inbox="notification.inbox",
    description="Tells the systems of shops what happens to their orders, by webhooks",
    partitioned_by="order",
)
CONSOLE = Service(
    name="console",
    package="operations",
    port=3012,
    settings="operations.settings:OperationsSettings",
    database="operations",
    inbox="operations.inbox",
    description="Shows what happens, keeps dead letters and replays them",
    can_be_paused=False,
)

SERVICES: Mapping[str, Service] = {
    service.name: service for service in (ORDER, INVENTORY, PAYMENT, PROVISIONING, NOTIFICATION, CONSOLE)
}
"""All services by name, in the order in which people list them."""

ANSWERING = (INVENTORY, PAYMENT, PROVISIONING)
"""The services that orders wait for. They tell the order service when their consumption is paused."""

SIMULATOR = Process(
    name="simulator",
    package="provisioning_service.simulator",
    port=3013,
    settings="provisioning_service.simulator.settings:SimulatorSettings",
)
"""Plays the server provider where none is configured. It is no service: it has no database and takes no messages."""

PROCESSES: Mapping[str, Process] = {**SERVICES, SIMULATOR.name: SIMULATOR}
"""Everything that a stack runs besides MongoDB and RabbitMQ, by name."""
