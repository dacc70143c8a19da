"""One load test from its products to its report."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from operations.audit import Report, audit
from operations.errors import UnreachableError
from operations.load.cost import Usage, between, usage
from operations.load.placing import Placing
from operations.load.plan import Plan
from operations.load.report import LoadReport, SlotFigures, milliseconds
from operations.load.settling import OrderBook, Outcomes
from operations.reading.connection import open_mongodb
from operations.settings import Stack
from shared.urls import hide_credentials

MOST_REASONS = 10


@dataclass(slots=True)
class Watch:
    """How far a load test is; whoever shows it looks at this from time to time."""

    phase: Literal["preparing", "placing", "settling", "reading", "auditing"] = "preparing"
    placing: Placing | None = field(default=None, repr=False)

    @property
    def done(self) -> int:
        """Orders dealt with."""
        return self.placing.done if self.placing else 0


async def run_load(stack: Stack, plan: Plan, watch: Watch | None = None) -> LoadReport:
    """Carry out the plan on a running stack, wait for its end and audit the books.

    Raises UnreachableError when a server does not answer.
    """
    watch = watch or Watch()
    load_id = f"load-{secrets.token_hex(4)}"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        await _create_products(session, stack.urls["inventory"], plan, load_id)
        placing = watch.placing = Placing(plan, stack.urls["order"], plan.bodies(load_id))
        orders = OrderBook(session, stack.urls["order"], load_id)
        before = usage(stack.data_dir)
        watch.phase = "placing"
        await placing.run()
        watch.phase = "settling"
        await orders.wait_until_settled(plan.timeout)
        after = usage(stack.data_dir)
        watch.phase = "reading"
        outcomes = await orders.outcomes()
    watch.phase = "auditing"
    books = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix)
    audited = await _count_orders(stack, load_id)
    return _report(plan, placing, outcomes, (before, after), books, audited, stack.describe())


async def _count_orders(stack: Stack, load_id: str) -> int:
    """Return how many orders of this load test are in the database that was audited."""
    async with open_mongodb(stack.mongodb_url, purpose="the load test", name="ordersaga-load") as client:
        orders = client[f"{stack.database_prefix}_orders"].orders
        return await orders.count_documents({"userId": load_id})


async def _create_products(session: aiohttp.ClientSession, inventory_url: str, plan: Plan, load_id: str) -> None:
    for product_id in plan.product_ids(load_id):
        url = f"{inventory_url}/inventory/{product_id}"
        try:
            async with session.put(url, json={"quantity": plan.stock}) as answer:
                answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnreachableError(
                f"the inventory service does not take {hide_credentials(url)}: {hide_credentials(str(error))}"
            ) from error


def _report(
    plan: Plan,
    placing: Placing,
    outcomes: Outcomes,
    used: tuple[dict[str, Usage], dict[str, Usage]],
    books: Report,
    audited: int,
    audited_in: str,
) -> LoadReport:
    return LoadReport(
        placed=plan.orders,
        accepted=placing.accepted,
        in_doubt=placing.in_doubt,
        recorded=outcomes.orders,
        unsettled=outcomes.unsettled,
        seconds=outcomes.seconds,
        latencies_ms={
            "post": milliseconds(placing.latencies),
            "final": milliseconds(outcomes.to_final),
            "settled": milliseconds(outcomes.to_settled),
        },
        statuses=dict(sorted(outcomes.statuses.items())),
        reasons=dict(outcomes.reasons.most_common(MOST_REASONS)),
        errors=dict(placing.errors),
        cost=between(*used),
        audit=books,
        audited=audited,
        audited_in=audited_in,
        slots=SlotFigures(outcomes.slots.total(), len(outcomes.slots), outcomes.full) if plan.slots else None,
    )
