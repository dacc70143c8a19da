"""The failed orders that await a decision, which the overview offers to retry with one reason and one click."""

from typing import NamedTuple
from urllib.parse import urlencode

from operations.console.dependencies import ConsoleDependencies
from operations.console.upstream import Unavailable, attempt
from operations.order_actions.actions import ORDER_ACTIONS
from operations.order_actions.bulk import new_id
from operations.order_actions.search import OrderSearch, OrderTotals, digest_of, query_for, select_orders, totals_of

MOST = 1000
"""Orders up to which they are read with the overview; more are retried from the page that a link leads to."""

_RETRY = ORDER_ACTIONS["retry"]
_SEARCH = OrderSearch(status="FAILED", open=True)


class RetryOffer(NamedTuple):
    """What the form says and sends: the orders that it stands for, and the id of the action that it starts."""

    totals: OrderTotals
    digest: str
    token: str

    warning: str = _RETRY.warning
    search: str = urlencode(_SEARCH.parameters)


async def read_retry_offer(dependencies: ConsoleDependencies, undecided: int) -> RetryOffer | None:
    """Return the offer; None if there is no such order, if there are too many, or if they cannot be read."""
    if not 0 < undecided <= MOST:
        return None
    selected = await attempt(select_orders(dependencies.orders, query_for(_RETRY, _SEARCH)), "MongoDB")
    if isinstance(selected, Unavailable) or not selected:
        return None
    return RetryOffer(totals_of(selected), digest_of(selected), new_id())
