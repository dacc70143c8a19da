"""Routes that are found by their path serve what the router would have served."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from shared.direct_routes import DirectRoutes


def create() -> FastAPI:
    app = FastAPI()
    app.router.middleware_stack = DirectRoutes(app.router)

    @app.get("/orders/newest")
    async def newest() -> str:
        return "the newest"

    @app.get("/orders/{order_id}")
    async def one(order_id: str) -> str:
        return f"order {order_id}"

    @app.get("/orders/oldest")  # hidden by the route before
    async def oldest() -> str:
        return "the oldest"

    @app.get("/orders")
    async def every(request: Request) -> list[str]:
        return [request.scope["route"].path, request.url.path, *request.query_params]

    @app.post("/orders")
    async def place() -> str:
        return str(app.url_path_for("newest"))

    return app


async def ask(app: FastAPI, method: str, path: str, below: str = "") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, root_path=below), base_url="http://test") as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/orders/newest", "the newest"),
        ("GET", "/orders/oldest", "order oldest"),
        ("GET", "/orders/7", "order 7"),
        ("GET", "/orders?page", ["/orders", "/orders", "page"]),
        ("POST", "/orders", "/orders/newest"),
    ],
)
async def test_the_route_is_the_one_that_the_router_finds(method: str, path: str, answer: object) -> None:
    assert (await ask(create(), method, path)).json() == answer


async def test_what_no_route_serves_is_left_to_the_router() -> None:
    app = create()
    assert (await ask(app, "GET", "/nothing")).status_code == 404
    refused = await ask(app, "DELETE", "/orders")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET")

    @app.get("/later")
    async def later() -> str:
        return "found"

    assert (await ask(app, "GET", "/later")).json() == "found"


async def test_what_is_no_request_is_left_to_the_router() -> None:
    app = create()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup" if not sent else "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_an_application_below_a_path_serves_its_routes() -> None:
    assert (await ask(create(), "GET", "/shop/orders/newest", below="/shop")).json() == "the newest"
