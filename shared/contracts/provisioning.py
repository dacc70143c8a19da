"""What the provisioning service answers."""

from typing import ClassVar

from shared.contracts.base import Count, Message, Name, OrderMessage, Text, WireModel


class Server(WireModel):
    """A server that belongs to one order; its password is never in a message."""

    ip: Name
    username: Name | None = None
    os: Name | None = None
    expires_at: Name | None = None


class ProvisioningProgress(OrderMessage):
    """A step of the job, in words for the customer.

    `sequence` counts what the job has said, over all its runs, so that repetitions and late ones are recognised; 0
    stands for a sender who does not count.
    """

    routing_key: ClassVar[str] = "provisioning.progress"

    step: Name
    attempt: Count = 0
    message: Text
    sequence: Count = 0


class ProvisioningCompleted(OrderMessage):
    """The server is bought and verified."""

    routing_key: ClassVar[str] = "provisioning.completed"

    server: Server


class ProvisioningFailed(OrderMessage):
    """No server will come from this run of the job; `retryable` says whether another run might succeed.

    A failure that comes late must not end a later run: `run` says which it is about, 0 that the sender does not count.
    `bought` says that the provider has sold something for the order all the same, which somebody has to decide about.
    """

    routing_key: ClassVar[str] = "provisioning.failed"

    reason: Text
    retryable: bool = False
    run: Count = 0
    bought: bool = False


class PackageLowIps(Message):
    """A package of the provider runs out of addresses; for anyone who buys more."""

    routing_key: ClassVar[str] = "package.low_ips"
    mandatory: ClassVar[bool] = False

    package: Name
    ipv4: Count

    @property
    def correlation_id(self) -> str:
        """The package's name: no order is meant."""
        return self.package
