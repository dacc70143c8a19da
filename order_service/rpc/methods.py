"""The methods of OrderService; each declares the permission that it needs, like a route."""

from order_service.events import CancelRequested
from order_service.following import Followers
from order_service.order_actions import OrderActions
from order_service.orders import NewRecord, Orders
from order_service.placement import OrderPlacement
from order_service.rpc.calls import Call
from order_service.rpc.failures import NOT_BOOKED_YET, STOPPING, CallFailedError
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.messages import event_message, new_order, order_message
from order_service.views import sees_personal, show, show_entry, show_new
from order_service.waiting import WaitingRequests
from shared import problems
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.contracts.failures import FailureCode
from shared.database import Document
from shared.http import invalid, not_found

MAX_BOOKING_SECONDS = 30.0
"""The longest wait for a booking; a client's deadline may end it earlier."""
MAX_REASON = 1000


class OrderMethods:
    """The work of each method, on an admitted call."""

    def __init__(
        self,
        orders: Orders,
        placement: OrderPlacement,
        actions: OrderActions,
        followers: Followers,
        bookings: WaitingRequests,
    ) -> None:
        self._orders = orders
        self._placement = placement
        self._actions = actions
        self._bookings = bookings
        self._followers = followers

    @requires(Permission.ORDERS_PLACE)
    async def create_order(self, request: pb.CreateOrderRequest, call: Call) -> pb.Order:
        """Accept an order; with a slot, answer when it is booked."""
        new = new_order(request)
        placed = await call.finish(self._placement.place(new, call.idempotency_key, call.caller))
        order_id = call.about(placed.order.order_id if isinstance(placed, NewRecord) else placed["_id"])
        if new.delivery is None or new.delivery.slot is None:
            shown = show_new(placed) if isinstance(placed, NewRecord) else show(placed, personal=True)
            return order_message(shown)
        return order_message(show(await self._booked(order_id, placed), personal=True))

    @requires(Permission.ORDERS_READ)
    async def get_order(self, request: pb.GetOrderRequest, call: Call) -> pb.Order:
        """Return an order with its history."""
        return order_message(show(await self._visible(request.order_id, call), personal=sees_personal(call.caller)))

    @requires(Permission.ORDERS_CANCEL)
    async def cancel_order(self, request: pb.CancelOrderRequest, call: Call) -> pb.Order:
        """Cancel an order that is not fulfilled yet."""
        if len(request.reason) > MAX_REASON:
            raise invalid(("reason", f"must have at most {MAX_REASON} characters"))
        order_id = call.about(request.order_id)
        asked = CancelRequested(request.reason or "Cancelled by the client")
        work = self._actions.execute(order_id, asked, "cancelled", call.caller, Permission.ORDERS_CANCEL)
        return order_message(show(await call.finish(work), personal=sees_personal(call.caller)))

    @requires(Permission.ORDERS_READ)
    async def watch_order(self, request: pb.WatchOrderRequest, call: Call) -> None:
        """Send an order's history as it grows, until it is settled."""
        if request.after < 0:
            raise invalid(("after", "must not be negative"))
        visible = call.caller.visible(Permission.ORDERS_READ)
        with self._followers.place():
            document = await self._followers.document(call.about(request.order_id), visible)
            async for reading in self._followers.readings(document, request.after, visible, call.is_known):
                for number, entry in reading.entries:
                    await call.send(event_message(number, show_entry(entry)))
                if reading.document["settled"]:
                    return
            await call.require_known()
            await self._followers.document(request.order_id, visible)  # which may be gone
        raise CallFailedError(STOPPING, STOPPING.example)

    async def _visible(self, order_id: str, call: Call) -> Document:
        document = await self._orders.document(call.about(order_id), call.caller.visible(Permission.ORDERS_READ))
        if document is None:
            raise not_found(f"Order {order_id}")
        return document

    async def _booked(self, order_id: str, placed: NewRecord | Document) -> Document:
        """Return the order once its slot is booked, or it has ended without one.

        Raises CallFailedError if no slot has room, or that is not known in time.
        """
        stored = placed.order if isinstance(placed, NewRecord) else placed
        document = (await self._bookings.wait(stored, MAX_BOOKING_SECONDS)).final
        if document is None and self._bookings.is_stopping:
            raise CallFailedError(STOPPING, STOPPING.example)
        if document is None:
            detail = f"Order {order_id} is accepted, but its slot is not booked yet; repeat the call with the same key"
            raise CallFailedError(NOT_BOOKED_YET, detail, orderId=order_id)
        if document.get("failureCode") == FailureCode.SLOT_FULL:
            raise CallFailedError(problems.SLOTS_FULL, document["failureReason"], orderId=order_id)
        return document
