"""What a seed draws: the orders of clients with all that happens to them, and every fault with its time and place.

Each story and each fault is drawn from the seed and its own number alone, so that those that are left say the same
when others are taken out.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from shared.failpoints import ALL_POINTS

ORDERS = 10
FAULTS = 24
BATCH_LIMITS = (1, 3, 200)
BREAKER_BATCHES = (0, 3)
"""The breaker of consumers is off, or opens after as many batches as in production."""
LAST_ORDER_AT = 10.0
LAST_FAULT_AT = 24.0
"""Both in virtual seconds: most of the saga's time limits end in between."""

SERVICES = ("order", "inventory", "payment", "provisioning")
PROCESSES = tuple(f"{service}-{number}" for service in SERVICES for number in (1, 2))

CRASH, CUT, REFUSE, LOSE_ANSWER, STALL, JUMP = "crash", "cut", "refuse", "lose-answer", "stall", "clock-jump"
LOSE_MESSAGES, DELAY, DUPLICATE, OVERTAKE = "lose-messages", "delay", "duplicate", "overtake"
HALF_PUBLISHED, PAUSE, REPLAY, ELECT = "half-published", "pause", "replay", "election"
PROVIDER, GATEWAY, POWER_CUT, NODE_LOSS, SPOIL = "provider", "gateway", "power-cut", "node-loss", "spoil"

AT_FAILPOINT, BEFORE_STEP, AFTER_STEP, BEFORE_WRITE, AFTER_WRITE, BEFORE_PUBLICATION, AFTER_PUBLICATION = (
    "at a failpoint",
    "before a database step",
    "after a database step",
    "before a write",
    "after a write",
    "before a publication",
    "after a publication",
)
AT_ANY_TIME, DURING_WRITE, AFTER_UNCONFIRMED_READ = "", "during a write", "after a read of what is unconfirmed"
CRASH_PLACES = (
    *(AT_FAILPOINT, AT_FAILPOINT, AT_FAILPOINT),
    *(BEFORE_STEP, AFTER_STEP, BEFORE_WRITE, AFTER_WRITE),
    *(BEFORE_PUBLICATION, BEFORE_PUBLICATION, AFTER_PUBLICATION),
)
STALL_PLACES = (AT_ANY_TIME, AT_FAILPOINT, AT_FAILPOINT, BEFORE_WRITE, AFTER_WRITE, AFTER_STEP)
ELECTION_PLACES = (AT_ANY_TIME, DURING_WRITE, AFTER_UNCONFIRMED_READ, AFTER_UNCONFIRMED_READ)

FAILPOINTS: Mapping[str, tuple[str, ...]] = {
    service: tuple(point for point in ALL_POINTS if point.startswith((f"{service}.", "consumer.")))
    for service in SERVICES
}
"""The failpoints that the processes of each service pass."""

SALE_FAULTS = ("refuses", "fails before the sale", "fails after the sale", "slow", "wrong address", "unreachable")
SALE, STATUS, STOCK = "sale", "status", "stock"
PROVIDER_PLACES = (
    *(f"{SALE}: {fault}" for fault in SALE_FAULTS),
    *(f"{STATUS}: fails", f"{STATUS}: fails", f"{STOCK}: fails"),
)
"""Which call of the provider goes wrong, and how."""

GATEWAY_CALLS = ("charge", "look_up", "capture", "refund", "refund_part")
LOST, UNANSWERED, LATE = "never arrives", "is not answered", "arrives late"
GATEWAY_PLACES = tuple(f"{call}: {fault}" for call in GATEWAY_CALLS for fault in (LOST, UNANSWERED, LATE))
"""Which call of the card gateway goes wrong, and how."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how often it is drawn, whom it hits, and what else is drawn for it."""

    weight: int
    targets: tuple[str, ...]
    places: tuple[str, ...] = ("",)
    seconds: tuple[float, ...] = (0.0,)
    skips: tuple[int, ...] = (0,)
    unknown: tuple[int, ...] = (0,)

    def drawn(self, kind: str, number: int, focus: "Focus", chance: random.Random) -> "Fault":
        """Draw one fault of this kind; in a plan with a focus, half of them hit its service."""
        at, target, place = chance.uniform(0, LAST_FAULT_AT), chance.choice(self.targets), chance.choice(self.places)
        skip, seconds, unknown = chance.choice(self.skips), chance.choice(self.seconds), chance.choice(self.unknown)
        nearer = [each for each in self.targets if each.partition("-")[0] == focus.service]
        if nearer and chance.random() < 0.5:
            target = chance.choice(nearer)
        if place == AT_FAILPOINT:
            place, skip = f"at {chance.choice(FAILPOINTS[target.partition('-')[0]])}", skip // 2
        return Fault(number, at, kind, target, place, skip, seconds, unknown)


_SKIPS = (0, 0, 1, 2, 4, 8)
_OUTAGES = (0.0, 0.0, 1.0, 3.0)

KINDS = {
    CRASH: Kind(9, PROCESSES, CRASH_PLACES, skips=_SKIPS),
    CUT: Kind(2, PROCESSES, skips=_SKIPS),
    REFUSE: Kind(2, PROCESSES, seconds=_OUTAGES, skips=_SKIPS),
    LOSE_ANSWER: Kind(3, PROCESSES, skips=_SKIPS),
    STALL: Kind(4, PROCESSES, STALL_PLACES, seconds=(1.0, 3.0, 9.0, 12.0), skips=_SKIPS),
    JUMP: Kind(2, PROCESSES, seconds=(-2.0, -1.0, -0.2, 0.2, 1.0, 2.0)),
    LOSE_MESSAGES: Kind(1, ("broker",)),
    DELAY: Kind(3, SERVICES, seconds=(0.1, 1.0, 4.0, 10.0), skips=_SKIPS),
    DUPLICATE: Kind(3, SERVICES, seconds=(0.0, 0.5, 10.0), skips=_SKIPS),
    OVERTAKE: Kind(2, SERVICES, skips=_SKIPS),
    HALF_PUBLISHED: Kind(2, PROCESSES, skips=_SKIPS),
    PAUSE: Kind(1, SERVICES, seconds=(3.0, 8.0, 24.0)),
    REPLAY: Kind(1, ("broker",)),
    PROVIDER: Kind(3, ("provider",), PROVIDER_PLACES, skips=(0, 0, 1, 2)),
    GATEWAY: Kind(2, ("gateway",), GATEWAY_PLACES, skips=(0, 0, 1, 2)),
    ELECT: Kind(2, SERVICES, ELECTION_PLACES, skips=_SKIPS, unknown=(0, 0, 1, 3)),
    NODE_LOSS: Kind(1, PROCESSES, (DURING_WRITE, AFTER_UNCONFIRMED_READ, AFTER_UNCONFIRMED_READ), skips=_SKIPS),
    POWER_CUT: Kind(1, SERVICES, CRASH_PLACES, skips=_SKIPS),
    SPOIL: Kind(1, SERVICES, skips=_SKIPS),
}
"""Every kind of fault. Clocks may differ by much less than a lease, which is what the services ask for."""

_TOKENS = ("tok_ok", "tok_ok", "tok_ok", "tok_declined", "tok_timeout", "tok_refund_refused")
_TOKENS_OF_CAPTURES = (*_TOKENS, "tok_capture_refused", "tok_capture_refused", "tok_authorization_expires")
_USERS = ("u1", "u1", "u2")
_HOLDS = ("", "", "", "taken", "contended", "deleted", "extended", "expired", "abandoned", "of another")


@dataclass(frozen=True, slots=True)
class Focus:
    """What a plan has more of than others: orders of some kind, and faults of the service that they need most."""

    service: str = ""
    servers: float = 0.3
    """The share of servers among the orders without a hold."""
    holds: tuple[str, ...] = _HOLDS
    slow: float = 0.02
    """The share of steps at a database that take long."""
    hasty: float = 0.05
    """The share of orders that are cancelled as soon as they are placed."""
    doubled: float = 0.2
    """The share of requests that are sent twice at the same moment."""


FOCUSES = (
    *(Focus(), Focus()),
    Focus("provisioning", servers=0.9, holds=("", "", "", "taken"), slow=0.15),
    Focus("order", slow=0.1, hasty=0.6, doubled=0.8),
    Focus(
        "inventory", holds=("", "contended", "contended", "expired", "abandoned", "abandoned", "deleted", "of another")
    ),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what happens to whom, from what time on, and after how many chances that it lets pass."""

    number: int
    at: float
    kind: str
    target: str
    """The process, the service, or for messages the inbox's service."""
    place: str = ""
    skip: int = 0
    seconds: float = 0.0
    unknown: int = 0
    """How many of the confirmed changes a new primary does not know yet to be confirmed."""

    def __str__(self) -> str:
        what = self.kind if self.kind == self.target else f"{self.kind} of {self.target}"
        parts = [f"fault {self.number}: {what}", f"from {self.at:.1f} s on"]
        if self.place:
            parts.append(self.place)
        if self.skip:
            parts.append(f"at chance {self.skip + 1}")
        if self.seconds:
            parts.append(f"for {self.seconds:g} s")
        if self.unknown:
            parts.append(f"with {self.unknown} confirmed changes unknown")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is asked for after an order is placed; `after` counts from there, in seconds."""

    after: float
    kind: str
    amount: float = 0.0
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """One client's order, with the hold before it and the actions after it."""

    number: int
    at: float
    user: str
    items: tuple[tuple[str, int], ...]
    token: str | None
    """The card; None if the order is paid from the retainer."""
    slot: str | None = None
    """`auto`, or the index of a slot."""
    hold: str = ""
    """What happens to a hold before the order: nothing, or one of `_HOLDS`.

    An `abandoned` one nobody names, and two orders at the same moment name one that is `contended`.
    """
    repeats: int = 0
    """How often the client repeats the request though it was answered."""
    actions: tuple[Action, ...] = ()

    def __str__(self) -> str:
        goods = " and ".join(f"{quantity} {product}" for product, quantity in self.items)
        parts = [f"order {self.number} at {self.at:.1f} s: {goods} for {self.user}", self.token or "from the retainer"]
        if self.slot is not None:
            parts.append(f"slot {self.slot}")
        if self.hold:
            parts.append(f"hold {self.hold}")
        parts += [f"{action.kind} after {action.after:.1f} s" for action in self.actions]
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """Everything that happens in one world."""

    seed: int
    card_capture: str
    stories: tuple[Story, ...]
    faults: tuple[Fault, ...] = field(default=())
    batch_limit: int = 200
    """The most messages that a process takes at once."""
    breaker_batches: int = 0
    """After how many failed batches the breaker of a consumer opens; 0 for never."""

    def keep(self, orders: Collection[int], faults: Collection[int]) -> "Plan":
        """Return the plan with these orders and faults only."""
        return replace(
            self,
            stories=tuple(story for story in self.stories if story.number in orders),
            faults=tuple(fault for fault in self.faults if fault.number in faults),
        )

    @property
    def numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The numbers of the orders and of the faults."""
        return tuple(story.number for story in self.stories), tuple(fault.number for fault in self.faults)


def focus_of(seed: int) -> Focus:
    """Draw what the plan of a seed has more of than others."""
    return random.Random(f"{seed}/focus").choice(FOCUSES)


def draw(seed: int) -> Plan:
    """Draw the plan of a seed."""
    capture = ("immediate", "on_confirm")[seed % 2]
    focus = focus_of(seed)
    stories = tuple(_story(seed, number, capture, focus) for number in range(1, ORDERS + 1))
    faults = tuple(_fault(seed, number, focus) for number in range(1, FAULTS + 1))
    batch_limit = random.Random(f"{seed}/batch").choice(BATCH_LIMITS)
    return Plan(seed, capture, stories, faults, batch_limit, random.Random(f"{seed}/breaker").choice(BREAKER_BATCHES))


def _story(seed: int, number: int, capture: str, focus: Focus) -> Story:
    chance = random.Random(f"{seed}/order/{number}")
    tokens: tuple[str | None, ...] = _TOKENS if capture == "immediate" else _TOKENS_OF_CAPTURES
    hold = chance.choice(focus.holds)
    is_server = not hold and chance.random() < focus.servers
    products = chance.sample(["p1", "p2"], chance.choice((1, 1, 2)))
    return Story(
        number,
        at=chance.uniform(0, LAST_ORDER_AT),
        user=chance.choice(_USERS),
        items=(("vps", 1),) if is_server else tuple((product, chance.choice((1, 1, 2))) for product in products),
        token=None if chance.random() < 0.25 else chance.choice(tokens),
        slot=chance.choice((None, None, "auto", "0", "1")),
        hold=hold,
        repeats=chance.choice((0, 0, 0, 1, 2)),
        actions=tuple(sorted(_actions(chance, focus), key=lambda action: action.after)),
    )


def _actions(chance: random.Random, focus: Focus) -> list[Action]:
    found: list[Action] = []
    for kind, probability, within in (
        ("cancel", focus.hasty, 0.1),
        ("cancel", 0.25, 2.0),
        ("cancel", 0.1, 12.0),
        ("retry", 0.3, 12.0),
        ("retry", 0.3, 18.0),
        ("refund", 0.2, 18.0),
        ("deliver", 0.4, 12.0),
        ("part", 0.35, 16.0),
        ("part", 0.25, 18.0),
        ("line", 0.3, 18.0),
    ):
        if chance.random() < probability:
            twice = chance.random() < focus.doubled
            found.append(Action(chance.uniform(0, within), kind, chance.choice((3, 7.5, 10)), twice))
            if kind == "refund" and twice:  # and somebody cancels the order while it is refunded
                found.append(Action(found[-1].after + 0.05, "cancel"))
    return found


def _fault(seed: int, number: int, focus: Focus) -> Fault:
    chance = random.Random(f"{seed}/fault/{number}")
    kind = chance.choices(list(KINDS), [each.weight for each in KINDS.values()])[0]
    return KINDS[kind].drawn(kind, number, focus, chance)
