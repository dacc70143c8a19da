"""The scenarios of the demo: each is a function that acts on the stack and checks the outcome."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import aiohttp

from operations.demo.demo_stack import DemoStack
from operations.demo.reporter import Reporter
from operations.demo.shop_client import NotSettledError, ShopClient
from operations.errors import UnreachableError
from operations.load import LoadPlan

MANY = 1000
SLOT_CAPACITY = 50
# RFC 5737 reserves these address ranges for documentation.
PACKAGE = "203.0.113"
ANOTHER_PACKAGE = {"198.51.100": ["198.51.100.7", "198.51.100.8"]}


async def ten_orders_for_five(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Sell five units to ten customers: five get one, and no unit is sold twice."""
    reporter.say("Five lamps are in stock. Ten customers order one at the same moment.")
    await shop.set_stock("lamp", 5)
    await shop.order_at_once(10, "ten", "lamp")
    orders = await shop.settled_orders_of("ten", 10)
    reporter.check(orders.count("CONFIRMED") == 5, "exactly five orders are confirmed", orders.summary)
    refused = orders.only("CANCELLED")
    reason = "Insufficient stock for lamp: asked 1, free 0"
    reporter.check(refused.reasons == {reason: 5}, f"exactly five are cancelled: {reason}", dict(orders.reasons))
    kept = refused.payment_statuses - Counter(REFUNDED=5, VOIDED=5)
    reporter.check(not kept, "cancelled orders are refunded", dict(refused.payment_statuses))
    await _check_stock(reporter, shop, "lamp", 0, 5, "no lamp is left, five are reserved")


async def _check_stock(
    reporter: Reporter, shop: ShopClient, product: str, available: int, reserved: int, text: str
) -> None:
    actual = await shop.stock_of(product)
    reporter.check(actual == (available, reserved), text, f"{actual[0]} available, {actual[1]} reserved")


async def declined_card(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Decline a payment: the reserved stock is released."""
    reporter.say("One chair is in stock. The first customer's card is declined, the second one's is accepted.")
    await shop.set_stock("chair", 1)
    await shop.order("first", "chair", token="tok_declined")  # noqa: S106
    orders = await shop.settled_orders_of("first", 1)
    reason = "The card was declined"
    reporter.check(orders.only("CANCELLED").reasons == {reason: 1}, f"the order is cancelled: {reason}", orders.summary)
    await _check_stock(reporter, shop, "chair", 1, 0, "the chair is available again")
    await shop.order("second", "chair")
    orders = await shop.settled_orders_of("second", 1)
    reporter.check(orders.count("CONFIRMED") == 1, "the next customer gets it", orders.summary)


async def twelve_orders_for_two_slots(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Fill two delivery slots: each takes orders up to its capacity and no more."""
    # Two hours ahead, so no slot begins while the scenario runs.
    opening = (datetime.now(UTC) + timedelta(hours=2)).replace(second=0, microsecond=0)
    await shop.configure_slots(opening, opening + timedelta(minutes=30), slots=2, capacity=SLOT_CAPACITY)
    first, second = await shop.slots()
    reporter.say(f"A kitchen delivers from {opening:%H:%M} UTC in two slots with a capacity of {SLOT_CAPACITY} each.")
    reporter.say("Twelve customers order for 10 at the same moment and want the earliest slot.")
    await shop.set_stock("pizza", 20)
    await shop.order_at_once(12, "hungry", "pizza", slot="auto")
    orders = await shop.settled_orders_of("hungry", 12)
    served = orders.only("CONFIRMED").slots == {first["slotId"]: 5, second["slotId"]: 5}
    reporter.check(served, "five get the first slot, five the second", dict(orders.slots))
    reason = f"No delivery slot with room for 10 until {second['end']}"
    refused = orders.only("CANCELLED")
    reporter.check(refused.reasons == {reason: 2}, f"two are cancelled: {reason}", dict(orders.reasons))
    await _check_stock(reporter, shop, "pizza", 10, 10, "their pizzas are available again")
    await _check_loads(reporter, shop, 50, 50)
    await _room_for_one_more(second["slotId"], reporter, shop)


async def _room_for_one_more(slot_id: str, reporter: Reporter, shop: ShopClient) -> None:
    reporter.say("The kitchen accepts one more order in the second slot. The next card is declined.")
    await shop.set_capacity(slot_id, SLOT_CAPACITY + 10)
    await shop.order("broke", "pizza", token="tok_declined", slot="auto")  # noqa: S106
    orders = await shop.settled_orders_of("broke", 1)
    reporter.check(orders.count("CANCELLED") == 1, "the order is cancelled, its room is free again", orders.summary)
    await _check_loads(reporter, shop, 50, 50)
    await shop.order("patient", "pizza", slot="auto")
    orders = await shop.settled_orders_of("patient", 1)
    reporter.check(orders.only("CONFIRMED").slots == {slot_id: 1}, "the next customer gets it", orders.summary)
    await _check_loads(reporter, shop, 50, 60)


async def _check_loads(reporter: Reporter, shop: ShopClient, *expected: int) -> None:
    slots = await shop.slots()
    booked = " and ".join(f"{slot['load']} of {slot['capacity']}" for slot in slots)
    reporter.check([slot["load"] for slot in slots] == list(expected), f"the slots are booked: {booked}", booked)


async def killed_in_the_middle(reporter: Reporter, demo_stack: DemoStack, shop: ShopClient) -> None:
    """Kill a service while it processes orders: the supervisor restarts it, and it continues where it stopped."""
    reporter.say("A hundred customers order a clock; seventy are in stock. Inventory is killed in the middle.")
    await shop.set_stock("clock", 70)
    await shop.order_at_once(50, "crowd", "clock")
    killed_pid = demo_stack.kill("inventory")
    at_that_moment = await shop.orders_of("crowd")
    restart, _ = await asyncio.gather(
        demo_stack.wait_for_restart("inventory", killed_pid), shop.order_at_once(50, "crowd", "clock")
    )
    open_orders = sum(not order["settled"] for order in at_that_moment.documents)
    reporter.note(f"inventory (pid {restart.killed_pid}) was killed after 50 orders, {open_orders} of them open")
    reporter.note(f"inventory (pid {restart.new_pid}) was ready again after {restart.seconds:.1f} s")
    orders = await shop.settled_orders_of("crowd", 100)
    reporter.check(len(orders.documents) == 100, "no order is lost: all hundred are settled")
    sold_out = (orders.count("CONFIRMED"), orders.count("CANCELLED")) == (70, 30)
    reporter.check(sold_out, "every clock is sold once: 70 confirmed, 30 cancelled", orders.summary)
    await _check_stock(reporter, shop, "clock", 0, 70, "no unit is leaked: 70 are reserved")


async def ten_orders_for_five_servers(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Sell servers of a provider that has five: an operator decides about the orders that failed."""
    reporter.say(f"Servers come from a provider, here a simulated one. Its package {PACKAGE} has five free addresses.")
    reporter.say("Ten customers order one. Once these are gone, the provider would sell a wrong server silently.")
    five = _addresses(11, 15)
    await shop.set_provider_stock({PACKAGE: five, **ANOTHER_PACKAGE})
    await shop.sell_as_server("server", PACKAGE)
    await shop.order_at_once(10, "hosted", "server")
    orders = await shop.decided_orders_of("hosted", 10)
    completed, failed = orders.only("COMPLETED"), orders.only("FAILED")
    reporter.check(completed.addresses == five, "five are completed, with five different servers", orders.summary)
    refused = len(failed.documents) == 5 and all("no available IPs" in reason for reason in failed.reasons)
    reporter.check(refused, "five have failed: there are no available IPs", dict(orders.reasons))
    held = failed.payment_statuses
    reporter.check(held == {"PROCESSED": 5}, "their money is held until an operator decides", dict(held))
    sold = await shop.provider_sales()
    reporter.check(sorted(sold) == five, "the provider has sold these five and no wrong one", sold)
    await _decide_about(failed.documents, reporter, shop)


async def _decide_about(failed: Sequence[dict[str, Any]], reporter: Reporter, shop: ShopClient) -> None:
    reporter.say("One more address becomes available. The operator retries one failed order and refunds the others.")
    await shop.set_provider_stock({PACKAGE: _addresses(16, 16), **ANOTHER_PACKAGE})
    retried, *others = failed
    await shop.retry(retried)
    await asyncio.gather(*(shop.refund(order) for order in others))
    orders = await shop.settled_orders_of("hosted", 10)
    completed, refunded = orders.only("COMPLETED"), orders.only("FAILED").payment_statuses
    reporter.check(completed.addresses == _addresses(11, 16), "the retried order gets the sixth server", orders.summary)
    reporter.check(refunded == {"REFUNDED": 4}, "the other four are refunded", dict(refunded))


async def a_lost_answer(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Lose the provider's answer to a purchase: the server is found and not bought again."""
    reporter.say("Two addresses are free. The provider sells one, and the connection breaks before its answer.")
    two = _addresses(21, 22)
    await shop.set_provider_stock({PACKAGE: two})
    await shop.drop_next_provider_answer()
    sold_before = len(await shop.provider_sales())
    order_id = await shop.order("unlucky", "server")
    orders = await shop.settled_orders_of("unlucky", 1)
    reporter.check(orders.count("COMPLETED") == 1, "the order is completed", orders.reasons or orders.summary)
    recorded = await shop.purchases_for(order_id)
    found = f"an attempt without an answer bought {two[0]}"
    reporter.check(recorded == [found], f"the job records: {found}", recorded)
    sold = (await shop.provider_sales())[sold_before:]
    reporter.check(sold == orders.addresses, "one server was sold, and the customer has it", f"{sold} were sold")


async def held_delivered_and_returned(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Take an order through its whole life: held, ordered, delivered, and refunded in part."""
    reporter.say("Five vases are in stock. A customer's basket holds two of them while the card is at hand.")
    await shop.set_stock("vase", 5)
    hold = await shop.hold("careful", "vase", 2)
    await _check_stock(reporter, shop, "vase", 3, 2, "two vases are held")
    order_id = await shop.order("careful", "vase", units=2, hold=hold)
    orders = await shop.settled_orders_of("careful", 1)
    reporter.check(orders.count("CONFIRMED") == 1, "the order takes over what is held", orders.summary)
    await _check_stock(reporter, shop, "vase", 3, 2, "and nothing besides")
    await shop.deliver(order_id)
    orders = await shop.settled_orders_of("careful", 1)
    reporter.check(orders.count("COMPLETED") == 1, "it is delivered", orders.summary)
    await _check_stock(reporter, shop, "vase", 3, 0, "the vases have left the stock")
    reporter.say("One vase comes back: its price is refunded, and it can be sold again.")
    await shop.refund_part(order_id, "vase", 1)
    (returned,) = (await shop.settled_orders_of("careful", 1)).documents
    refunded = returned["refundedAmount"] == returned["totalAmount"] / 2
    reporter.check(refunded, "half of the money is refunded", returned["refundedAmount"])
    await _check_stock(reporter, shop, "vase", 4, 0, "four vases are for sale")


def _addresses(first: int, last: int) -> list[str]:
    return [f"{PACKAGE}.{number}" for number in range(first, last + 1)]


async def a_thousand_orders(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Measure throughput and latency."""
    reporter.say(f"{MANY:,} orders for ten products over 32 connections, as fast as they are answered.")
    report = await reporter.load(shop.stack, LoadPlan(orders=MANY))
    settled = report.recorded - report.unsettled
    complete = report.complete and settled == MANY
    reporter.check(complete, f"all {MANY:,} orders are settled", f"{settled:,} of {MANY:,} are settled")
    confirmed = report.statuses.get("CONFIRMED", 0)
    reporter.check(confirmed == MANY, "all of them are confirmed", dict(report.statuses))
    rate = report.orders_per_second
    reporter.note(f"{rate:,.0f} orders per second, from the first POST to the last settled order")
    for name, title in (("post", "answered"), ("settled", "settled")):
        figures = report.latencies_ms[name]
        reporter.note(f"{title} after {figures['p50']:.0f} ms (median), {figures['p99']:.0f} ms (99th percentile)")


async def final_audit(reporter: Reporter, _demo_stack: DemoStack, shop: ShopClient) -> None:
    """Audit everything that the scenarios did."""
    reporter.say("Every order and product of this demo is checked in the databases of all services.")
    report = await reporter.audit(shop.stack)
    for violation in report.violations:
        reporter.note(violation.describe())
    dead, in_flight = report.information["deadLetters"], report.information["inFlight"]
    reporter.check(report.ok, "the books balance", f"{len(report.violations) + report.unlisted} violations")
    reporter.check(in_flight == 0, "no order is in flight", in_flight)
    reporter.check(not dead, "there are no dead letters", dead)


class Scenario(NamedTuple):
    """A scenario and its title."""

    title: str
    run: Callable[[Reporter, DemoStack, ShopClient], Awaitable[None]]


SCENARIOS = (
    Scenario("Ten orders for five lamps", ten_orders_for_five),
    Scenario("A declined card releases its stock", declined_card),
    Scenario("Twelve orders for two slots", twelve_orders_for_two_slots),
    Scenario("An order is held, delivered and refunded in part", held_delivered_and_returned),
    Scenario("kill -9 in the middle of a hundred orders", killed_in_the_middle),
    Scenario("Ten orders for five servers", ten_orders_for_five_servers),
    Scenario("A lost answer buys no second server", a_lost_answer),
    Scenario("A thousand orders", a_thousand_orders),
    Scenario("The final audit", final_audit),
)


async def run_scenarios(scenarios: Sequence[Scenario], reporter: Reporter, demo_stack: DemoStack) -> None:
    """Run the scenarios in order, up to the first that cannot be completed."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=20), headers=demo_stack.stack.headers
    ) as session:
        shop = ShopClient(session, demo_stack.stack)
        for number, scenario in enumerate(scenarios, start=1):
            reporter.begin_scenario(number, scenario.title)
            try:
                await scenario.run(reporter, demo_stack, shop)
            except (UnreachableError, NotSettledError) as error:
                reporter.fail(str(error))
                return
