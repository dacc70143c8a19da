"""The story: each chapter is a function that makes something happen and claims what came of it. STORY has them all."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import aiohttp

from operations.commands.audit import audit_with_progress, verdicts
from operations.commands.load import load_with_progress
from operations.demo.demo_stack import DemoStack
from operations.demo.reporter import Reporter
from operations.demo.shop_client import NotSettledError, Orders, ShopClient
from operations.errors import UnreachableError
from operations.load import Plan
from operations.load.report import LoadReport

MANY = 1000
SLOT_CAPACITY = 50
# Addresses that belong to nobody: RFC 5737 keeps them for stories like this one.
PACKAGE = "203.0.113"
ANOTHER_PACKAGE = {"198.51.100": ["198.51.100.7", "198.51.100.8"]}


async def ten_orders_for_five(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """Five of ten buyers get what there is; nothing is sold twice."""
    scene.tell("There are five lamps. Ten customers order one, all at the same moment.")
    await shop.put_on_shelf("lamp", 5)
    await shop.order_at_once(10, "ten", "lamp")
    orders = await shop.settled_orders_of("ten", 10)
    scene.claim(orders.count("CONFIRMED") == 5, "exactly five orders are confirmed", orders.summary)
    refused = orders.only("CANCELLED")
    reason = "Insufficient stock for lamp: asked 1, free 0"
    scene.claim(refused.reasons == {reason: 5}, f"exactly five are cancelled: {reason}", dict(orders.reasons))
    returned = Counter(order["paymentStatus"] for order in refused.documents)
    scene.claim(not returned - Counter(REFUNDED=5, VOIDED=5), "who got no lamp has the money back", dict(returned))
    free, reserved = await shop.shelf("lamp")
    scene.claim((free, reserved) == (0, 5), "no lamp is left, five are reserved", f"{free} free, {reserved} reserved")


async def declined_card(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """What was reserved for an order goes back when it is not paid."""
    scene.tell("There is one chair. Its first buyer's card is declined, its second buyer's is good.")
    await shop.put_on_shelf("chair", 1)
    await shop.order("first", "chair", token="tok_declined")  # noqa: S106
    orders = await shop.settled_orders_of("first", 1)
    reason = "The card was declined"
    scene.claim(orders.only("CANCELLED").reasons == {reason: 1}, f"the order is cancelled: {reason}", orders.summary)
    free, reserved = await shop.shelf("chair")
    scene.claim((free, reserved) == (1, 0), "the chair is free again", f"{free} free, {reserved} reserved")
    await shop.order("second", "chair")
    orders = await shop.settled_orders_of("second", 1)
    scene.claim(orders.count("CONFIRMED") == 1, "the next customer gets it", orders.summary)


async def a_kitchen_and_its_slots(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """A slot takes orders for so much money, and not a cent more."""
    # Hours ahead, so that none of its slots begins while the story is told.
    opening = (datetime.now(UTC) + timedelta(hours=2)).replace(second=0, microsecond=0)
    await shop.deliver(opening, opening + timedelta(minutes=30), slots=2, capacity=SLOT_CAPACITY)
    first, second = await shop.slots()
    scene.tell(f"A kitchen delivers from {opening:%H:%M} UTC in two slots, with orders for {SLOT_CAPACITY} in each.")
    scene.tell("Twelve customers order for 10, all at the same moment, and want it as early as possible.")
    await shop.put_on_shelf("pizza", 20)
    await shop.order_at_once(12, "hungry", "pizza", slot="auto")
    orders = await shop.settled_orders_of("hungry", 12)
    served = orders.only("CONFIRMED").slots == {first["slotId"]: 5, second["slotId"]: 5}
    scene.claim(served, "five have the first slot, five the second", dict(orders.slots))
    reason = f"No delivery slot with room for 10 until {second['end']}"
    refused = orders.only("CANCELLED")
    scene.claim(refused.reasons == {reason: 2}, f"two are cancelled: {reason}", dict(orders.reasons))
    free, reserved = await shop.shelf("pizza")
    scene.claim((free, reserved) == (10, 10), "their pizzas are free again", f"{free} free, {reserved} reserved")
    await _claim_loads(scene, shop, 50, 50)
    await _room_for_one_more(second["slotId"], scene, shop)


async def _room_for_one_more(slot_id: str, scene: Reporter, shop: ShopClient) -> None:
    scene.tell("The kitchen takes one order more in the second slot. The next buyer's card is declined.")
    await shop.set_capacity(slot_id, SLOT_CAPACITY + 10)
    await shop.order("broke", "pizza", token="tok_declined", slot="auto")  # noqa: S106
    orders = await shop.settled_orders_of("broke", 1)
    scene.claim(orders.count("CANCELLED") == 1, "the order is cancelled, its room is free again", orders.summary)
    await _claim_loads(scene, shop, 50, 50)
    await shop.order("patient", "pizza", slot="auto")
    orders = await shop.settled_orders_of("patient", 1)
    scene.claim(orders.only("CONFIRMED").slots == {slot_id: 1}, "the next customer gets it", orders.summary)
    await _claim_loads(scene, shop, 50, 60)


async def _claim_loads(scene: Reporter, shop: ShopClient, *expected: int) -> None:
    slots = await shop.slots()
    booked = " and ".join(f"{slot['load']} of {slot['capacity']}" for slot in slots)
    scene.claim([slot["load"] for slot in slots] == list(expected), f"the slots are booked with {booked}", booked)


async def killed_in_the_middle(scene: Reporter, stage: DemoStack, shop: ShopClient) -> None:
    """A service dies with its hands full; the supervisor starts it again, and it takes up where it was."""
    scene.tell("A hundred customers order a clock; there are seventy. Inventory is killed on the way.")
    await shop.put_on_shelf("clock", 70)
    await shop.order_at_once(50, "crowd", "clock")
    killed_pid = stage.kill("inventory")
    at_that_moment = await shop.orders_of("crowd")
    back, _ = await asyncio.gather(stage.back("inventory", killed_pid), shop.order_at_once(50, "crowd", "clock"))
    open_orders = sum(not order["settled"] for order in at_that_moment.documents)
    scene.note(f"inventory (pid {back.killed_pid}) was killed when 50 were placed and {open_orders} still open")
    scene.note(f"inventory (pid {back.new_pid}) was ready again after {back.seconds:.1f} s")
    orders = await shop.settled_orders_of("crowd", 100)
    scene.claim(len(orders.documents) == 100, "no order is lost: all hundred have come to their end")
    sold_out = (orders.count("CONFIRMED"), orders.count("CANCELLED")) == (70, 30)
    scene.claim(sold_out, "every clock is sold once: 70 confirmed, 30 cancelled", orders.summary)
    free, reserved = await shop.shelf("clock")
    scene.claim((free, reserved) == (0, 70), "no unit is leaked: 70 are reserved", f"{free} free, {reserved} reserved")


async def ten_orders_for_five_servers(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """Servers come from a provider that sells one address once; an operator decides about who got none."""
    scene.tell(f"Servers come from a provider, here a simulated one. Its package {PACKAGE} has five free addresses.")
    scene.tell("Ten customers order one. When those are gone, the provider sells a wrong server without a word.")
    five = _addresses(11, 15)
    await shop.provider_has({PACKAGE: five, **ANOTHER_PACKAGE})
    await shop.sell_servers("server", PACKAGE)
    await shop.order_at_once(10, "hosted", "server")
    orders = await shop.decided_orders_of("hosted", 10)
    completed, failed = orders.only("COMPLETED"), orders.only("FAILED")
    scene.claim(completed.addresses == five, "five are completed, with five different servers", orders.summary)
    refused = len(failed.documents) == 5 and all("no available IPs" in reason for reason in failed.reasons)
    scene.claim(refused, "five have failed: there are no available IPs", dict(orders.reasons))
    scene.claim(_money(failed) == {"PROCESSED": 5}, "their money is held until somebody decides", _money(failed))
    sold = await shop.provider_sold()
    scene.claim(sorted(sold) == five, "the provider has sold these five, and no wrong one", sold)
    await _decide_about(failed.documents, scene, shop)


async def _decide_about(failed: Sequence[dict[str, Any]], scene: Reporter, shop: ShopClient) -> None:
    scene.tell("One more address is bought in. The operator retries one failed order and refunds the others.")
    await shop.provider_has({PACKAGE: _addresses(16, 16), **ANOTHER_PACKAGE})
    retried, *others = failed
    await shop.retry(retried)
    await asyncio.gather(*(shop.refund(order) for order in others))
    orders = await shop.settled_orders_of("hosted", 10)
    completed, refunded = orders.only("COMPLETED"), orders.only("FAILED")
    scene.claim(completed.addresses == _addresses(11, 16), "the retried order has the sixth server", orders.summary)
    scene.claim(_money(refunded) == {"REFUNDED": 4}, "the four others have the money back", _money(refunded))


async def a_lost_answer(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """The provider sold a server and nobody heard of it: it is found, not bought again."""
    scene.tell("There are two addresses. The provider sells one, and the connection breaks before it can say so.")
    two = _addresses(21, 22)
    await shop.provider_has({PACKAGE: two})
    await shop.provider_loses_its_next_answer()
    sold_before = len(await shop.provider_sold())
    order_id = await shop.order("unlucky", "server")
    orders = await shop.settled_orders_of("unlucky", 1)
    scene.claim(orders.count("COMPLETED") == 1, "the order is completed all the same", orders.reasons or orders.summary)
    said = await shop.purchases_for(order_id)
    found = f"an attempt without an answer bought {two[0]}"
    scene.claim(said == [found], f"the job says: {found}", said)
    sold = (await shop.provider_sold())[sold_before:]
    scene.claim(sold == orders.addresses, "one server was sold, and the customer has it", f"{sold} were sold")


def _addresses(first: int, last: int) -> list[str]:
    return [f"{PACKAGE}.{number}" for number in range(first, last + 1)]


def _money(orders: Orders) -> dict[str, int]:
    return dict(Counter(order["paymentStatus"] for order in orders.documents))


async def a_thousand_orders(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """What the stack carries."""
    scene.tell(f"{MANY:,} orders for ten products, 32 at a time, as fast as they are answered.")
    report = await load_with_progress(shop.stack, Plan(orders=MANY), scene.console)
    settled = report.recorded - report.unsettled
    scene.claim(report.complete and settled == MANY, f"all {MANY:,} orders are settled", f"{settled:,} of {MANY:,} are")
    confirmed = report.statuses.get("CONFIRMED", 0)
    scene.claim(confirmed == MANY, "all of them are confirmed", dict(report.statuses))
    scene.note(_throughput(report))
    for name, title in (("post", "answered"), ("settled", "settled")):
        figures = report.latencies_ms[name]
        scene.note(f"{title} after {figures['p50']:.0f} ms (median), {figures['p99']:.0f} ms (99 of 100)")


def _throughput(report: LoadReport) -> str:
    return f"{report.orders_per_second:,.0f} orders a second, from the first POST to the last settled order"


async def audited(scene: Reporter, _stage: DemoStack, shop: ShopClient) -> None:
    """The verdict over everything that happened."""
    scene.tell("Every order and product of this story, over the databases of all services.")
    report = await audit_with_progress(shop.stack, scene.console)
    scene.show(verdicts(report))
    for violation in report.violations:
        scene.note(violation.describe())
    dead = report.information["deadLetters"]
    scene.claim(report.ok, "the books balance", f"{len(report.violations) + report.unlisted} things are wrong")
    scene.claim(report.information["inFlight"] == 0, "no order is left on its way", report.information["inFlight"])
    scene.claim(not dead, "no message is a dead letter", dead)


Chapter = Callable[[Reporter, DemoStack, ShopClient], Awaitable[None]]


class Titled(NamedTuple):
    """A chapter and its title."""

    title: str
    chapter: Chapter


SCENARIOS = (
    Titled("Ten orders for five lamps", ten_orders_for_five),
    Titled("A declined card gives its stock back", declined_card),
    Titled("Two slots for twelve orders", a_kitchen_and_its_slots),
    Titled("kill -9 in the middle of a hundred orders", killed_in_the_middle),
    Titled("Ten orders for five servers", ten_orders_for_five_servers),
    Titled("A lost answer buys no second server", a_lost_answer),
    Titled("A thousand orders", a_thousand_orders),
    Titled("The audit's verdict", audited),
)


async def tell(story: tuple[Titled, ...], scene: Reporter, stage: DemoStack) -> None:
    """Tell the chapters one after the other; ends at the first that cannot be told to its end."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        shop = ShopClient(session, stage.stack)
        for number, (title, chapter) in enumerate(story, start=1):
            scene.open(number, title)
            try:
                await chapter(scene, stage, shop)
            except (UnreachableError, NotSettledError) as error:
                scene.fail(str(error))
                return
