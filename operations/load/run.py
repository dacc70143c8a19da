"""Runs a load test: create products, place orders, wait, audit, report."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from operations.audit import Report, audit
from operations.audit.order_records import OrderRecords
from operations.errors import UnreachableError
from operations.load.cost import Cost, cost_between, measure_usage
from operations.load.outcomes import Outcomes, PlacedOrders
from operations.load.placer import OrderPlacer
from operations.load.plan import LoadPlan
from operations.load.report import LoadReport, SlotFigures, milliseconds
from operations.settings import Stack
from shared.tls import client_context, plain_reason
from shared.urls import hide_credentials

MOST_REASONS = 10


@dataclass(slots=True)
class LoadProgress:
    """The progress of a load test, for a display that polls it."""

    phase: Literal["preparing", "placing", "settling", "reading", "auditing"] = "preparing"
    placer: OrderPlacer | None = field(default=None, repr=False)

    @property
    def done(self) -> int:
        """The number of orders that have been dealt with."""
        return self.placer.done if self.placer else 0


async def run_load(stack: Stack, plan: LoadPlan, progress: LoadProgress | None = None) -> LoadReport:
    """Place the orders of a plan on a running stack, wait until they are settled, and audit the books.

    Raises UnreachableError if a server does not answer.
    """
    progress = progress or LoadProgress()
    load_id = f"load-{secrets.token_hex(4)}"
    connector = aiohttp.TCPConnector(ssl=client_context())
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=stack.headers) as session:
        await create_products(session, stack.urls["inventory"], plan, load_id)
        placer = progress.placer = OrderPlacer(plan, stack.urls["order"], plan.bodies(load_id), stack.headers)
        orders = PlacedOrders(session, stack.urls["order"], load_id)
        before = measure_usage(stack.data_dir)
        progress.phase = "placing"
        await placer.run()
        progress.phase = "settling"
        await orders.wait_until_settled(plan.timeout)
        after = measure_usage(stack.data_dir)
        progress.phase = "reading"
        outcomes = await orders.outcomes()
    progress.phase = "auditing"
    products, judged = set(plan.product_ids(load_id)), set[str]()

    def note(records: OrderRecords) -> None:
        items = (records.order or {}).get("items", ())
        if any(item["productId"] in products for item in items):  # no other order has them
            judged.add(records.order_id)

    books = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix, on_order=note)
    return _report(plan, placer, outcomes, cost_between(before, after), books, len(judged), stack.describe())


async def create_products(session: aiohttp.ClientSession, inventory_url: str, plan: LoadPlan, load_id: str) -> None:
    """Create the products of a plan with enough stock. Raises UnreachableError if the service does not accept them."""
    for product_id in plan.product_ids(load_id):
        url = f"{inventory_url}/inventory/{product_id}"
        try:
            async with session.put(url, json={"quantity": plan.stock}) as answer:
                answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(
                f"the inventory service does not accept {hide_credentials(url)}: "
                f"{hide_credentials(plain_reason(str(error)))}"
            ) from error


def _report(
    plan: LoadPlan,
    placer: OrderPlacer,
    outcomes: Outcomes,
    cost: dict[str, Cost],
    books: Report,
    audited: int,
    audited_in: str,
) -> LoadReport:
    return LoadReport(
        placed=plan.orders,
        accepted=placer.accepted,
        in_doubt=placer.in_doubt,
        refused=placer.refused,
        recorded=outcomes.orders,
        unsettled=outcomes.unsettled,
        seconds=outcomes.seconds,
        latencies_ms={
            "post": milliseconds(placer.latencies),
            "final": milliseconds(outcomes.to_final),
            "settled": milliseconds(outcomes.to_settled),
        },
        statuses=dict(sorted(outcomes.statuses.items())),
        reasons=dict(outcomes.reasons.most_common(MOST_REASONS)),
        errors=dict(placer.errors),
        cost=cost,
        audit=books,
        audited=audited,
        audited_in=audited_in,
        slots=SlotFigures(outcomes.slots.total(), len(outcomes.slots), outcomes.full) if plan.slots else None,
    )
