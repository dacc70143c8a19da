"""The answers of the provisioning service."""

from typing import ClassVar

from shared.contracts.base import Count, Message, Moment, Name, OrderMessage, Text, WireModel
from shared.contracts.failures import Code


class Server(WireModel):
    """A server that belongs to one order; messages never contain its password."""

    ip: Name
    username: Name | None = None
    os: Name | None = None
    expires_at: Name | None = None


class ProvisioningProgress(OrderMessage):
    """A step of the job, in words for the customer.

    `sequence` counts the messages of the job over all its runs, to detect repeated and late ones; 0 if the sender does
    not count.
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
    """This run of the job will deliver no server; `retryable` is true if another run might succeed.

    `run` names the run, 0 if the sender does not count: a late failure must not end a later run. `bought` is true if
    the provider has sold something for the order anyway, so an operator must decide.
    """

    routing_key: ClassVar[str] = "provisioning.failed"

    reason: Text
    code: Code | None = None
    retryable: bool = False
    run: Count = 0
    bought: bool = False


class PackageLowIps(Message):
    """A package of the provider is running out of addresses; for the people who buy more.

    `at` is when that was noticed, the same in every repetition; absent in messages of earlier releases.
    """

    routing_key: ClassVar[str] = "package.low_ips"
    mandatory: ClassVar[bool] = False

    package: Name
    ipv4: Count
    at: Moment | None = None

    @property
    def correlation_id(self) -> str:
        """The package's name, because it is about no order."""
        return self.package
