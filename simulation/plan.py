"""What a seed draws: the orders of clients with all that happens to them, and every fault with its time and place.

Each story and each fault is drawn from the seed and its own number alone, so that those that are left say the same
when others are taken out.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace

ORDERS = 10
FAULTS = 24
BATCH_LIMITS = (1, 3, 200)
LAST_ORDER_AT = 10.0
LAST_FAULT_AT = 24.0
"""Both in virtual seconds: most of the saga's time limits end in between."""

SERVICES = ("order", "inventory", "payment", "provisioning")
PROCESSES = tuple(f"{service}-{number}" for service in SERVICES for number in (1, 2))

CRASH, CUT, REFUSE, LOSE_ANSWER, STALL, JUMP = "crash", "cut", "refuse", "lose-answer", "stall", "clock-jump"
LOSE_MESSAGES, DELAY, DUPLICATE, OVERTAKE = "lose-messages", "delay", "duplicate", "overtake"
HALF_PUBLISHED, PAUSE, REPLAY, PROVIDER, ELECT = "half-published", "pause", "replay", "provider", "election"

AT_FAILPOINT, BEFORE_STEP, AFTER_STEP, BEFORE_WRITE, AFTER_WRITE, BEFORE_PUBLICATION, AFTER_PUBLICATION = (
    "at a failpoint",
    "before a database step",
    "after a database step",
    "before a write",
    "after a write",
    "before a publication",
    "after a publication",
)
CRASH_PLACES = (
    *(AT_FAILPOINT, AT_FAILPOINT, AT_FAILPOINT),
    *(BEFORE_STEP, AFTER_STEP, BEFORE_WRITE, AFTER_WRITE),
    *(BEFORE_PUBLICATION, BEFORE_PUBLICATION, AFTER_PUBLICATION),
)
PROVIDER_FAULTS = ("refuses", "fails before the sale", "fails after the sale", "slow", "wrong address", "unreachable")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how often it is drawn, whom it hits, and what else is drawn for it."""

    weight: int
    targets: tuple[str, ...]
    places: tuple[str, ...] = ("",)
    seconds: tuple[float, ...] = (0.0,)
    skips: tuple[int, ...] = (0,)

    def drawn(self, kind: str, number: int, chance: random.Random) -> "Fault":
        """Draw one fault of this kind."""
        return Fault(
            number,
            chance.uniform(0, LAST_FAULT_AT),
            kind,
            chance.choice(self.targets),
            chance.choice(self.places),
            chance.choice(self.skips),
            chance.choice(self.seconds),
        )


_SKIPS = (0, 0, 1, 2, 4, 8)
_OUTAGES = (0.0, 0.0, 1.0, 3.0)

KINDS = {
    CRASH: Kind(9, PROCESSES, CRASH_PLACES, skips=_SKIPS),
    CUT: Kind(2, PROCESSES, skips=_SKIPS),
    REFUSE: Kind(2, PROCESSES, seconds=_OUTAGES, skips=_SKIPS),
    LOSE_ANSWER: Kind(3, PROCESSES, skips=_SKIPS),
    STALL: Kind(2, PROCESSES, seconds=(1.0, 3.0, 6.0, 12.0)),
    JUMP: Kind(2, PROCESSES, seconds=(-2.0, -1.0, -0.2, 0.2, 1.0, 2.0)),
    LOSE_MESSAGES: Kind(1, ("broker",)),
    DELAY: Kind(3, SERVICES, seconds=(0.1, 1.0, 4.0, 10.0), skips=_SKIPS),
    DUPLICATE: Kind(3, SERVICES, seconds=(0.0, 0.5, 10.0), skips=_SKIPS),
    OVERTAKE: Kind(2, SERVICES, skips=_SKIPS),
    HALF_PUBLISHED: Kind(2, PROCESSES, skips=_SKIPS),
    PAUSE: Kind(1, SERVICES, seconds=(3.0, 8.0, 24.0)),
    REPLAY: Kind(1, ("broker",)),
    PROVIDER: Kind(3, ("provider",), PROVIDER_FAULTS, skips=(0, 0, 1, 2)),
    ELECT: Kind(1, SERVICES),
}
"""Every kind of fault. Clocks may differ by much less than a lease, which is what the services ask for."""

_TOKENS = ("tok_ok", "tok_ok", "tok_ok", "tok_declined", "tok_timeout", "tok_refund_refused")
_TOKENS_OF_CAPTURES = (*_TOKENS, "tok_capture_refused", "tok_capture_refused", "tok_authorization_expires")
_USERS = ("u1", "u1", "u2")


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

    def __str__(self) -> str:
        what = self.kind if self.kind == self.target else f"{self.kind} of {self.target}"
        parts = [f"fault {self.number}: {what}", f"from {self.at:.1f} s on"]
        if self.place:
            parts.append(self.place)
        if self.skip:
            parts.append(f"at chance {self.skip + 1}")
        if self.seconds:
            parts.append(f"for {self.seconds:g} s")
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
    """What happens to a hold before the order: nothing, or `taken`, `deleted`, `extended`, `expired`, `of another`."""
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


def draw(seed: int) -> Plan:
    """Draw the plan of a seed."""
    capture = ("immediate", "on_confirm")[seed % 2]
    stories = tuple(_story(seed, number, capture) for number in range(1, ORDERS + 1))
    faults = tuple(_fault(seed, number) for number in range(1, FAULTS + 1))
    return Plan(seed, capture, stories, faults, random.Random(f"{seed}/batch").choice(BATCH_LIMITS))


def _story(seed: int, number: int, capture: str) -> Story:
    chance = random.Random(f"{seed}/order/{number}")
    tokens: tuple[str | None, ...] = _TOKENS if capture == "immediate" else _TOKENS_OF_CAPTURES
    hold = chance.choice(("", "", "", "taken", "taken", "deleted", "extended", "expired", "of another"))
    is_server = not hold and chance.random() < 0.3
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
        actions=tuple(sorted(_actions(chance), key=lambda action: action.after)),
    )


def _actions(chance: random.Random) -> list[Action]:
    found: list[Action] = []
    for kind, probability, within in (
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
            twice = chance.random() < 0.2
            found.append(Action(chance.uniform(0, within), kind, chance.choice((3, 7.5, 10)), twice))
    return found


def _fault(seed: int, number: int) -> Fault:
    chance = random.Random(f"{seed}/fault/{number}")
    kind = chance.choices(list(KINDS), [each.weight for each in KINDS.values()])[0]
    return KINDS[kind].drawn(kind, number, chance)
