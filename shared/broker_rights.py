"""Who may do what on the broker: a user for each service with the least rights, as one table. Pure.

From it derive the users of `ordersaga up`, the output of `ordersaga topology users`, the checks of `ordersaga doctor`
and the rule that tells foreign dead letters. docs/broker.md shows the table. The broker enforces it: RabbitMQ compares
the names of exchanges and queues with the patterns of a user, and on the topic exchange the routing key as well.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared import services
from shared.contracts import ALL_MESSAGES, ConsumerPausesChanged, DeadLetterHandled, Message
from shared.services import SERVICES, Service
from shared.topology import (
    DEAD_LETTERS,
    EVENTS,
    EXCHANGE,
    FORMER_RETRY_QUEUES,
    INBOXES,
    PARTITIONED,
    PROBE_EXCHANGE,
    inbox_of,
    retry_queues,
)

DEPLOYER = "deployer"
"""The user who declares the topology, and the one for operators' commands. No service knows its password."""

VIRTUAL_HOST = "ordersaga"

_PARTITION = "([.][1-9][0-9]*)?"
_DEFAULT_EXCHANGE = ""
_DEFAULT_EXCHANGE_IN_PATTERNS = "amq.default"

_MODULES = {"orders": services.ORDER, "inventory": services.INVENTORY, "payments": services.PAYMENT}
_MODULES |= {"provisioning": services.PROVISIONING}
"""The service that sends the messages of a module of shared.contracts."""


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of a user: the exchanges that it may publish to, the queues that it may consume, the routing keys.

    `topics` are the routing keys that it may use on the exchange `ordersaga`. `everything` stands for all rights on the
    virtual host. No user but that one may declare or delete anything.
    """

    user: str
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    everything: bool = False

    @property
    def configure_pattern(self) -> str:
        """The pattern of what it may declare and delete."""
        return ".*" if self.everything else ""

    @property
    def write_pattern(self) -> str:
        """The pattern of the exchanges that it may publish to."""
        named = (name or _DEFAULT_EXCHANGE_IN_PATTERNS for name in self.write)
        return ".*" if self.everything else _any_of(named)

    @property
    def read_pattern(self) -> str:
        """The pattern of the queues that it may consume."""
        return ".*" if self.everything else _any_of(self.read)

    @property
    def topic_pattern(self) -> str:
        """The pattern of the routing keys that it may publish with on the exchange `ordersaga`."""
        return ".*" if self.everything else _any_of(self.topics)


def sent_by(service: Service) -> tuple[type[Message], ...]:
    """Return the messages that a service sends to the exchange `ordersaga`."""
    own = (message for message in ALL_MESSAGES if _MODULES.get(_module(message)) is service)
    pauses = (ConsumerPausesChanged,) if service in services.ANSWERING else ()
    return (*own, *pauses, DeadLetterHandled)  # which every consumer sends, about a replay that it has handled


def _module(message: type[Message]) -> str:
    return message.__module__.rpartition(".")[2]


def _any_of(names: Iterable[str]) -> str:
    return f"^({'|'.join(_pattern_of(name) for name in names)})$"


def _pattern_of(name: str) -> str:
    """Return the pattern of a name; of an inbox that may be divided, also of its partitions, however many."""
    return re.escape(name) + (_PARTITION if name in PARTITIONED else "")


def _rights_of(service: Service) -> Rights:
    return Rights(
        service.user,
        write=(EXCHANGE, DEAD_LETTERS, PROBE_EXCHANGE, *retry_queues(service.inbox)),
        read=(service.inbox,),
        topics=tuple(message.routing_key for message in sent_by(service)),
    )


def _rights_of_operations() -> Rights:
    """Operations sends replays to inboxes by their names, consumes the dead letters and reads the events.

    It counts the messages of all queues, which RabbitMQ 4.3 allows with any right on them. Here it is the right to send
    to exchanges of the same names: with the one to consume it could empty the inboxes, and with the one to declare,
    delete them. It lets this user also bind these queues to the exchange of the dead letters.
    """
    own = _rights_of(services.CONSOLE)
    counted = (*INBOXES, *(name for inbox in INBOXES for name in retry_queues(inbox)), *FORMER_RETRY_QUEUES)
    write = tuple(dict.fromkeys((*own.write, _DEFAULT_EXCHANGE, *counted)))
    return Rights(own.user, write, (*own.read, DEAD_LETTERS, EVENTS), own.topics)


RIGHTS: Mapping[str, Rights] = {
    rights.user: rights
    for rights in (
        *(_rights_of(service) for service in SERVICES.values() if service is not services.CONSOLE),
        _rights_of_operations(),
        Rights(DEPLOYER, everything=True),
    )
}
"""The rights of each user, by its name."""

EVENT_READER = ("", "", _any_of([EVENTS]))
"""The patterns (declare, publish, consume) of a program outside of this project that only reads events."""


def may_send_by_name(user: str | None) -> bool:
    """Return False for a user of the table who may not send to an inbox by its name.

    Others are not judged: with one user for all, as in an earlier release, only the broker's rights count.
    """
    rights = RIGHTS.get(user or "")
    return rights is None or rights.everything or _DEFAULT_EXCHANGE in rights.write


def may_ask_for(user: str | None, name: str) -> bool:
    """Return whether a user has any right on the exchange or queue of this name, or is not in the table.

    RabbitMQ 4.2.6 and later answer only then whether it exists.
    """
    rights = RIGHTS.get(user or "")
    return rights is None or rights.everything or inbox_of(name) in {*rights.write, *rights.read}


def could_have_sent(user: str, routing_key: str, inbox: str) -> bool:
    """Return whether this user has the rights with which such a message gets into this inbox.

    It may send to any inbox by its name, or the inbox is its own, to which its retries return, or the routing key is
    one that it may use and that is bound to the inbox.
    """
    rights = RIGHTS.get(user)
    if rights is None:
        return False
    if rights.everything or _DEFAULT_EXCHANGE in rights.write or inbox in rights.read:
        return True
    bound = (message.routing_key for message in INBOXES.get(inbox, ()))
    return routing_key in rights.topics and routing_key in bound
