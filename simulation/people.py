"""The clients and operators of a world: each story is a task. What is not answered is asked again, by the same key."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from simulation.entropy import BEGINNING
from simulation.plan import Action, Story
from simulation.processes import SimulatedProcess
from simulation.provider import PACKAGE
from simulation.trace import Trace
from simulation.web import Answer, NoAnswerError, request

STOCK = 8
PREPAID = 60
"""The balance of the retainer: enough for some of the orders that are paid from it."""
ROOM = 25
"""The capacity of each of the two delivery slots."""
PRICE = 10
HOLD_SECONDS = 4
RIVALS = 100
"""The numbers of orders that compete for a hold with another order begin here."""
_PATIENCE, _PAUSE = 4.0, 0.5
"""How long an answer may take, and the pause before the next attempt, in seconds."""


class UnexpectedAnswerError(Exception):
    """A service has answered what it must not answer to such a request."""


@dataclass(frozen=True, slots=True)
class PromisedRefund:
    """A refund in part as the client was told of it; the amount is in minor units."""

    refund_id: str
    amount: int


@dataclass
class Shop:
    """What the clients have in common, and what they were told."""

    slots: Sequence[str] = ()
    retainer_id: str = ""
    accepted: dict[int, str] = field(default_factory=dict)
    """The ids of the orders that were answered with 202, by the number of their story."""
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was asked for, by the id of the order."""
    ended: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What else was answered with 202 (`cancel`, `refund`, `deliver`), by the id of the order."""
    refunds: dict[str, dict[str, "PromisedRefund"]] = field(default_factory=lambda: defaultdict(dict))
    """The refunds in part that were answered with 202, by the id of the order and their key."""
    doubtful_refunds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The keys that were refused after an attempt without an answer, which may still have taken effect."""
    holds: list[dict[str, Any]] = field(default_factory=list)


class Person:
    """Somebody who sends requests until they are answered."""

    def __init__(self, name: str, seed: int, processes: Mapping[str, Sequence[SimulatedProcess]], trace: Trace) -> None:
        self._name = name
        self._chance = random.Random(f"{seed}/{name}")
        self._processes = processes
        self._trace = trace
        self.unanswered: set[str] = set()
        """The keys of requests that a process took and did not answer, or answered with an error of its own."""

    async def ask(
        self,
        service: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        expected: Collection[int] = (200, 201, 202),
    ) -> Answer:
        """Send a request again and again until one of the expected answers comes."""
        headers = {} if key is None else {"Idempotency-Key": key}
        while True:
            answer = await self._try(service, method, path, body, headers)
            if key is not None and (answer is None or answer.status >= 500):
                self.unanswered.add(key)
            if answer is not None and answer.status in expected:
                return answer
            if answer is not None and answer.status < 500:
                raise UnexpectedAnswerError(f"{method} {path} was answered with {answer.status}: {answer.body}")
            await asyncio.sleep(_PAUSE)

    async def _try(self, service: str, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer | None:
        life = self._chance.choice(self._processes[service]).life
        if life is None or not life.serves:
            return None  # the connection is refused
        self._trace.note(f"{method} {path} at {life.process}", process=self._name)
        try:
            answer = await request(life, service, method, path, body, headers, _PATIENCE)
        except NoAnswerError:
            self._trace.note("no answer", process=self._name)
            return None
        self._trace.note(f"answer {answer.status}", process=self._name)
        return answer


async def open_shop(operator: Person) -> Shop:
    """Set everything up before the first order."""
    for product in ("p1", "p2"):
        await operator.ask("inventory", "PUT", f"/inventory/{product}", {"quantity": STOCK})
    await operator.ask("inventory", "PUT", "/products/vps", {"kind": "vps", "package": PACKAGE})
    opening = (BEGINNING + timedelta(hours=12)).strftime("%H:%M")
    rules = {"durationMinutes": 1440, "openTime": opening, "closeTime": opening, "capacity": ROOM, "horizonSlots": 2}
    await operator.ask("inventory", "PUT", "/slots/config", rules)
    slots = (await operator.ask("inventory", "GET", "/slots")).body["items"]
    funding = {"clientId": "u1", "retainerType": "prepaid", "initialAmount": PREPAID}
    opened = await operator.ask("payment", "POST", "/api/retainers", funding, key="retainer")
    return Shop([slot["slotId"] for slot in slots], opened.body["retainer"]["_id"])


async def live_through(story: Story, client: Person, shop: Shop) -> None:
    """Do what a story tells: a hold, the order, and what is asked for afterwards."""
    await asyncio.sleep(story.at)
    body = _body(story, shop)
    if story.hold:
        body |= await _hold_first(story, client, shop)
    key = f"order-{story.number}"
    rivals = [_rival(story, body, client, shop)] if story.hold == "contended" else []
    answer, *_ = await asyncio.gather(client.ask("order", "POST", "/orders", body, key=key), *rivals)
    order_id = shop.accepted[story.number] = answer.body["orderId"]
    shop.asked[order_id] = body
    for _ in range(story.repeats):
        again = await client.ask("order", "POST", "/orders", body, key=key)
        if again.body["orderId"] != order_id:
            raise UnexpectedAnswerError(f"{key} was answered with {order_id}, then with {again.body['orderId']}")
    placed_at = asyncio.get_running_loop().time()
    for number, action in enumerate(story.actions):
        await asyncio.sleep(max(0.0, placed_at + action.after - asyncio.get_running_loop().time()))
        await _act(action, number, order_id, story, client, shop)


async def _rival(story: Story, body: dict[str, Any], client: Person, shop: Shop) -> None:
    """Place another order with the same hold at the same moment."""
    answer = await client.ask("order", "POST", "/orders", body, key=f"rival-{story.number}")
    shop.accepted[RIVALS + story.number] = answer.body["orderId"]
    shop.asked[answer.body["orderId"]] = body


def _body(story: Story, shop: Shop) -> dict[str, Any]:
    items = _items(story)
    from_retainer = {"method": "retainer", "retainerId": shop.retainer_id}
    return {
        "userId": story.user,
        "items": items,
        "totalAmount": sum(PRICE * quantity for _, quantity in story.items),
        "payment": {"token": story.token} if story.token else from_retainer,
        **({"delivery": {"slot": _slot(story, shop)}} if story.slot is not None else {}),
    }


def _items(story: Story) -> list[dict[str, Any]]:
    return [{"productId": product, "quantity": quantity, "price": PRICE} for product, quantity in story.items]


def _slot(story: Story, shop: Shop) -> str:
    return "auto" if story.slot == "auto" else shop.slots[int(story.slot or 0)]


async def _hold_first(story: Story, client: Person, shop: Shop) -> dict[str, Any]:
    """Make a hold and let happen to it what the story tells; return what the order says about it."""
    asked: dict[str, Any] = {"userId": story.user, "items": _items(story), "ttlSeconds": HOLD_SECONDS}
    if story.slot is not None:
        asked["slot"] = _slot(story, shop)
    key = f"hold-{story.number}"
    answer = await client.ask("inventory", "POST", "/holds", asked, key=key, expected=(200, 201, 409))
    if answer.status == 409:
        return {}
    hold_id = answer.body["holdId"]
    shop.holds.append(answer.body)
    match story.hold:
        case "deleted":
            await client.ask("inventory", "DELETE", f"/holds/{hold_id}", expected=(204, 409))
        case "extended":
            longer = {"ttlSeconds": HOLD_SECONDS}
            await client.ask("inventory", "POST", f"/holds/{hold_id}/extend", longer, expected=(200, 409))
        case "expired":
            await asyncio.sleep(HOLD_SECONDS - 0.5)
        case "abandoned":
            return {}
        case "of another":
            hold_id = shop.holds[0]["holdId"]
    return {"holdId": hold_id}


async def _act(action: Action, number: int, order_id: str, story: Story, client: Person, shop: Shop) -> None:
    if action.kind in ("part", "line"):
        key, body = f"refund-{story.number}-{number}", _refund_body(action, number, story)
        for answer in await _asked(f"/orders/{order_id}/refunds", body, key, action, client):
            _note_refund(answer, key, _minor(action.amount if action.kind == "part" else PRICE), order_id, client, shop)
        return
    for answer in await _asked(f"/orders/{order_id}/{action.kind}", None, None, action, client):
        if answer.status == 202:
            is_refund = action.kind == "cancel" and answer.body["status"] == "FAILED"
            shop.ended[order_id].add("refund" if is_refund else action.kind)


async def _asked(path: str, body: Any, key: str | None, action: Action, client: Person) -> Sequence[Answer]:
    requests = [client.ask("order", "POST", path, body, key=key, expected=(202, 409))]
    if action.twice:
        requests.append(client.ask("order", "POST", path, body, key=key, expected=(202, 409)))
    return await asyncio.gather(*requests)


def _refund_body(action: Action, number: int, story: Story) -> dict[str, Any]:
    if action.kind == "part":
        return {"amount": action.amount}
    return {"items": [{"productId": story.items[0][0], "quantity": 1}], "restock": number % 3 > 0}


def _note_refund(answer: Answer, key: str, amount: int, order_id: str, client: Person, shop: Shop) -> None:
    if answer.status != 202:
        if key in client.unanswered:
            shop.doubtful_refunds[order_id].add(key)
        return
    promised = PromisedRefund(answer.body["refundId"], _minor(answer.body["amount"]))
    known = shop.refunds[order_id].setdefault(key, promised)
    if known != promised or promised.amount != amount:
        raise UnexpectedAnswerError(f"{key} of {amount} was answered with {known}, then with {promised}")


def _minor(amount: float) -> int:
    return round(100 * amount)
