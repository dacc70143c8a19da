"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Self, TypeVar, Unpack

import httpx
import stamina

from ordersaga_client import calls
from ordersaga_client.calls import Call, OrderFilters, WebhookChanges
from ordersaga_client.connection import LIMITS, RETRIES, TIMEOUT, Connection, Credential, Retries, failure
from ordersaga_client.event_stream import Following
from ordersaga_client.models import (
    DeliveryStatus,
    Model,
    NewOrder,
    NewRefund,
    Order,
    OrderEvent,
    Page,
    Refund,
    Webhook,
    WebhookDelivery,
)

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=Model)


class AsyncClient:
    """A client of ordersaga. Close it, or use it as a context manager.

    `url` is the order service, `webhooks_url` the notification service, `api_key` an API key or a JWT, or a function
    that returns one. What is not given comes from ORDERSAGA_ORDER_URL, ORDERSAGA_NOTIFICATION_URL and
    ORDERSAGA_API_KEY. `http` is an httpx client of your own, such as one with a proxy or certificates; close it
    yourself.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: Credential | None = None,
        *,
        webhooks_url: str | None = None,
        timeout: float = TIMEOUT,
        retries: Retries = RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._owns_http = http is None
        self._http = http or httpx.AsyncClient(limits=LIMITS)
        connection = Connection.configured(url, webhooks_url, api_key, timeout)
        sender = _AsyncSender(connection, retries, self._http)
        self.orders = AsyncOrders(sender)
        self.webhooks = AsyncWebhooks(sender)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._owns_http:
            await self._http.aclose()


class _AsyncSender:
    """Sends requests, again where that is safe."""

    def __init__(self, connection: Connection, retries: Retries, http: httpx.AsyncClient) -> None:
        self._connection = connection
        self._retries = retries
        self._http = http

    async def send(self, call: Call[T]) -> T:
        """Return what a call is answered."""
        return await self._caller(call)(self._retries.decide(call), self._send_once, call)

    async def each(self, page: Callable[[str | None], Call[Page[ModelT]]]) -> AsyncIterator[ModelT]:
        """Yield the entries of a list, page after page."""
        cursor = None
        while True:
            found = await self.send(page(cursor))
            for item in found.items:
                yield item
            cursor = found.next_cursor
            if cursor is None:
                return

    async def open(self, call: Call[Any]) -> httpx.Response:
        """Return an answer whose body is still to be read; close it."""
        return await self._caller(call)(self._retries.decide(call), self._open_once, call)

    def _caller(self, call: Call[Any]) -> stamina.AsyncRetryingCaller:
        seconds = self._retries.seconds(call, self._connection.timeout)
        return stamina.AsyncRetryingCaller(attempts=self._retries.attempts, timeout=seconds)

    async def _send_once(self, call: Call[T]) -> T:
        try:
            response = await self._http.send(self._connection.request(self._http, call))
        except httpx.RequestError as error:
            raise failure(error) from error
        return calls.answer_to(call, response)

    async def _open_once(self, call: Call[Any]) -> httpx.Response:
        try:
            response = await self._http.send(self._connection.request(self._http, call, stream=True), stream=True)
            if not response.is_success:
                async with aclosing(response):
                    await response.aread()
        except httpx.RequestError as error:
            raise failure(error) from error
        calls.raise_for_problem(response)
        return response


class AsyncOrders:
    """Orders: place, read, follow, cancel."""

    def __init__(self, sender: _AsyncSender) -> None:
        self._sender = sender

    async def place(self, order: NewOrder, *, wait: int | None = None, idempotency_key: str | None = None) -> Order:
        """Place an order; with `wait`, return it when it is final, or as it is after so many seconds (1 to 30).

        It is placed once, however often the request has to be sent. Give a key of your own, such as the number of the
        cart, if your process may be killed and place the order again: the same key and order return the first one.
        """
        return await self._sender.send(calls.place_order(order, wait, idempotency_key))

    async def get(self, order_id: str) -> Order:
        """Return an order with its history."""
        return await self._sender.send(calls.get_order(order_id))

    def iterate(self, **filters: Unpack[OrderFilters]) -> AsyncIterator[Order]:
        """Yield the orders that match, newest first unless `sort` says otherwise; pages are requested as needed."""
        return self._sender.each(lambda cursor: calls.list_orders(filters, cursor))

    async def page(
        self, *, cursor: str | None = None, limit: int = calls.PAGE_SIZE, **filters: Unpack[OrderFilters]
    ) -> Page[Order]:
        """Return one page of the orders that match."""
        return await self._sender.send(calls.list_orders(filters, cursor, limit))

    async def follow(self, order_id: str, *, after: str | None = None) -> AsyncIterator[OrderEvent]:
        """Yield what has happened to an order and what happens, until it is settled; the stream may break meanwhile."""
        following = Following(after)
        while not following.ended:
            async with aclosing(await self._sender.open(calls.order_events(order_id, following.last_id))) as response:
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                async for event in _events(response, following):
                    yield event
            if not following.ended:
                await asyncio.sleep(following.pause())

    async def cancel(self, order_id: str, reason: str | None = None) -> Order:
        """Cancel an order; ConflictError if it is too late for that."""
        return await self._sender.send(calls.cancel_order(order_id, reason))

    async def deliver(self, order_id: str) -> Order:
        """Note that the goods of a CONFIRMED order have left."""
        return await self._sender.send(calls.deliver_order(order_id))

    async def refund(self, order_id: str, refund: NewRefund, *, idempotency_key: str | None = None) -> Refund:
        """Return a part of the money of a CONFIRMED or COMPLETED order."""
        return await self._sender.send(calls.refund_order(order_id, refund, idempotency_key))

    def refunds(self, order_id: str) -> AsyncIterator[Refund]:
        """Yield the refunds in part of an order, oldest first."""
        return self._sender.each(lambda cursor: calls.list_refunds(order_id, cursor))


class AsyncWebhooks:
    """Endpoints that are told of events. `ordersaga_client.webhooks` verifies what they get."""

    def __init__(self, sender: _AsyncSender) -> None:
        self._sender = sender

    async def create(
        self, url: str, events: Sequence[str], *, user_id: str | None = None, description: str | None = None
    ) -> Webhook:
        """Register an endpoint for events such as `order.*`. Keep the `secret` of the answer: it is shown once."""
        return await self._sender.send(calls.create_webhook(url, events, user_id, description))

    def iterate(self) -> AsyncIterator[Webhook]:
        """Yield all endpoints."""
        return self._sender.each(calls.list_webhooks)

    async def get(self, webhook_id: str) -> Webhook:
        """Return an endpoint."""
        return await self._sender.send(calls.get_webhook(webhook_id))

    async def update(self, webhook_id: str, **changes: Unpack[WebhookChanges]) -> Webhook:
        """Change an endpoint: its `url`, `events` or `description`, or whether it is `enabled`."""
        return await self._sender.send(calls.update_webhook(webhook_id, changes))

    async def delete(self, webhook_id: str) -> None:
        """Remove an endpoint."""
        await self._sender.send(calls.delete_webhook(webhook_id))

    async def rotate(self, webhook_id: str) -> Webhook:
        """Replace the secret; both secrets sign for a day. Keep the `secret` of the answer: it is shown once."""
        return await self._sender.send(calls.rotate_webhook(webhook_id))

    async def test(self, webhook_id: str) -> WebhookDelivery:
        """Have an event sent for a test."""
        return await self._sender.send(calls.check_webhook(webhook_id))

    def deliveries(self, webhook_id: str, status: DeliveryStatus | str | None = None) -> AsyncIterator[WebhookDelivery]:
        """Yield the deliveries to an endpoint; all, or those in a status."""
        return self._sender.each(lambda cursor: calls.list_deliveries(webhook_id, status, cursor))

    async def delivery(self, webhook_id: str, delivery_id: str) -> WebhookDelivery:
        """Return a delivery with what is sent and its latest attempts."""
        return await self._sender.send(calls.get_delivery(webhook_id, delivery_id))

    async def redeliver(self, webhook_id: str, delivery_id: str) -> WebhookDelivery:
        """Deliver an event once more, under the same id."""
        return await self._sender.send(calls.redeliver(webhook_id, delivery_id))

    async def redeliver_failed(self, webhook_id: str, since: datetime) -> int:
        """Deliver all events once more that were not delivered since a time; return how many they are."""
        return (await self._sender.send(calls.redeliver_failed(webhook_id, since))).redelivered


async def _events(response: httpx.Response, following: Following) -> AsyncIterator[OrderEvent]:
    """Yield the events of one stream; one that breaks is opened again by the caller."""
    following.opened()
    try:
        async for piece in response.aiter_bytes():
            for event in following.take(piece):
                yield event
    except httpx.TransportError:
        return
    except httpx.RequestError as error:
        raise failure(error) from error
