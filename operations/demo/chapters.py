"""The story: each chapter is a function that makes something happen and claims what came of it. STORY has them all."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import aiohttp

from operations.audit.command import audit_with_progress, in_words, verdicts
from operations.demo.scene import Scene
from operations.demo.shop import NotSettledError, Shop
from operations.demo.stage import Stage
from operations.load import Plan
from operations.load.command import load_with_progress
from operations.load.report import LoadReport
from operations.settings import UnreachableError

MANY = 1000


async def ten_orders_for_five(scene: Scene, _stage: Stage, shop: Shop) -> None:
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


async def declined_card(scene: Scene, _stage: Stage, shop: Shop) -> None:
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


async def killed_in_the_middle(scene: Scene, stage: Stage, shop: Shop) -> None:
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


async def a_thousand_orders(scene: Scene, _stage: Stage, shop: Shop) -> None:
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


async def audited(scene: Scene, _stage: Stage, shop: Shop) -> None:
    """The verdict over everything that happened."""
    scene.tell("Every order and product of this story, over the databases of all services.")
    report = await audit_with_progress(shop.stack, scene.console)
    scene.show(verdicts(report))
    for violation in report.violations:
        scene.note(in_words(violation))
    dead = report.information["deadLetters"]
    scene.claim(report.ok, "the books balance", f"{len(report.violations) + report.unlisted} things are wrong")
    scene.claim(report.information["inFlight"] == 0, "no order is left on its way", report.information["inFlight"])
    scene.claim(not dead, "no message is a dead letter", dead)


Chapter = Callable[[Scene, Stage, Shop], Awaitable[None]]


class Titled(NamedTuple):
    """A chapter and its title."""

    title: str
    chapter: Chapter


STORY = (
    Titled("Ten orders for five lamps", ten_orders_for_five),
    Titled("A declined card gives its stock back", declined_card),
    Titled("kill -9 in the middle of a hundred orders", killed_in_the_middle),
    Titled("A thousand orders", a_thousand_orders),
    Titled("The audit's verdict", audited),
)


async def tell(story: tuple[Titled, ...], scene: Scene, stage: Stage) -> None:
    """Tell the chapters one after the other; ends at the first that cannot be told to its end."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        shop = Shop(session, stage.stack)
        for number, (title, chapter) in enumerate(story, start=1):
            scene.open(number, title)
            try:
                await chapter(scene, stage, shop)
            except (UnreachableError, NotSettledError) as error:
                scene.fail(str(error))
                return
