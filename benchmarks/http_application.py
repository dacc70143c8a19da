"""The application that benchmarks.http measures: the order service's routes over orders that are stored nowhere."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from starlette.types import Receive, Scope, Send

from order_service.api import create_router
from order_service.deadlines import Timeouts
from order_service.intake import Intake
from order_service.new_order import NewOrder
from order_service.order import Order
from order_service.orders import NewRecord
from order_service.placement import OrderPlacement
from order_service.views import show_new
from shared.access.authenticator import Authenticator
from shared.access.principal import anonymous
from shared.clock import utc_now
from shared.http import StrictRoute, add_routes, create_app, json_response
from shared.lean_route import LeanRoute
from shared.observability import configure_logging


class _Orders:
    """Takes orders and forgets them."""

    async def insert(self, _records: Sequence[NewRecord]) -> set[str]:
        """Store nothing."""
        return set()

    async def newest_without_owner(self) -> None:
        """Return none, so that keys of the first release are not looked up."""


class _Outbox:
    def post(self, order: Order) -> None:
        """Publish nothing."""


async def _nothing_down() -> dict[str, str]:
    return {}


_TIMEOUTS = Timeouts(timedelta(minutes=5), timedelta(days=1), timedelta(seconds=10), timedelta(seconds=30))
_STAND_INS: tuple[Any, Any] = (_Orders(), _Outbox())
_NOT_CALLED: Any = None
_PLACEMENT = OrderPlacement(*_STAND_INS, _TIMEOUTS, utc_now, Intake(_NOT_CALLED, _NOT_CALLED, utc_now, limit=None))

configure_logging("benchmark", "WARNING", "json")
app = create_app("benchmark", "", _nothing_down, authenticator=Authenticator(None))
routes = create_router(_NOT_CALLED, _PLACEMENT, _NOT_CALLED, _NOT_CALLED, _NOT_CALLED, _NOT_CALLED)
placing = next(each for each in routes.routes if isinstance(each, LeanRoute) and each.name == "place_order")
routes.add_api_route(
    "/orders-by-framework", placing.endpoint, methods=["POST"], status_code=202, route_class_override=StrictRoute
)
add_routes(app.router, routes)


async def bare(_scope: Scope, receive: Receive, send: Send) -> None:
    """No framework: what is left is the server, the validation, and placing the order."""
    message = await receive()
    # Without a key, no order can be there before it.
    placed = await _PLACEMENT.place(NewOrder.model_validate_json(message["body"]), None, anonymous())
    assert isinstance(placed, NewRecord)
    body = json_response(show_new(placed)).body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app.mount("/bare", bare)
