"""The application that benchmarks.http measures: a POST of an order, by three paths from body to answer."""

from datetime import timedelta
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from order_service.deadlines import Timeouts
from order_service.new_order import NewOrder
from order_service.placement import OrderPlacement
from order_service.views import OrderView, show_new
from shared.access.authenticator import Authenticator
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.clock import utc_now
from shared.http import create_app, json_response, new_router

_TIMEOUTS = Timeouts(timedelta(minutes=5), timedelta(days=1), timedelta(seconds=10), timedelta(seconds=30))
_PLACEMENT: Any = OrderPlacement(None, None, _TIMEOUTS, utc_now)  # type: ignore[arg-type]  # only its pure part is called


async def _nothing_down() -> dict[str, str]:
    return {}


app = create_app("benchmark", "", _nothing_down, authenticator=Authenticator(None))
_router = new_router("benchmark")


@_router.post("/orders", status_code=202, response_model=OrderView)
@requires(Permission.CATALOGUE_READ)
async def place(new: NewOrder) -> Response:
    """As the order service does it: one dict, written by orjson."""
    return json_response(show_new(_PLACEMENT._order(new, None)), 202)  # noqa: SLF001


@_router.post("/fastapi", status_code=202, response_model=OrderView)
@requires(Permission.CATALOGUE_READ)
async def place_validated(new: NewOrder) -> dict[str, Any]:
    """The answer goes through its response model."""
    return show_new(_PLACEMENT._order(new, None))  # noqa: SLF001


async def bare(_scope: Scope, receive: Receive, send: Send) -> None:
    """No framework: what is left is the server and the validation."""
    message = await receive()
    shown = show_new(_PLACEMENT._order(NewOrder.model_validate_json(message["body"]), None))  # noqa: SLF001
    body = json_response(shown).body
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app.include_router(_router)
app.mount("/bare", bare)
