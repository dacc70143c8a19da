"""The composition root of the order service: `python -m order_service`."""

import shared.quick_start  # noqa: F401 - first, because it makes the other imports quicker

# isort: split
from collections.abc import Callable
from datetime import timedelta

from pymongo.read_concern import ReadConcern

from order_service.api import create_router
from order_service.deadlines import Timeouts
from order_service.following import Followers
from order_service.handlers import handlers
from order_service.intake import Intake
from order_service.order_actions import OrderActions
from order_service.orders import COLLECTION, Orders
from order_service.outbox import Outbox
from order_service.placement import OrderPlacement
from order_service.refund_requests import RefundRequests
from order_service.rpc import MAX_CALLS
from order_service.schema import SCHEMA
from order_service.settings import OrderSettings
from order_service.sweeper import Sweeper
from order_service.waiting import BOOKED, WaitingRequests
from shared.admission import Admission, OtherServer
from shared.clock import utc_now
from shared.errors import StartError
from shared.pausing.records import PauseRecords
from shared.service import Connections, Parts, run
from shared.services import ORDER


def assemble(settings: OrderSettings, connections: Connections) -> Parts:
    """Wire the parts to the connections."""
    timeouts = Timeouts(
        saga_timeout=timedelta(seconds=settings.saga_timeout_seconds),
        failed_hold=timedelta(seconds=settings.failed_hold_seconds),
        republish_after=timedelta(seconds=settings.republish_after_seconds),
        resend_after=timedelta(seconds=settings.resend_after_seconds),
    )
    # A decision must not rest on a write that a failover could take back.
    orders = Orders(connections.database.get_collection(COLLECTION, read_concern=ReadConcern("majority")))
    pauses = PauseRecords(connections.database)
    # Well before the sweep would publish again, and late enough for most orders to have moved on.
    outbox = Outbox(
        orders,
        connections.publisher,
        utc_now,
        note_after=settings.republish_after_seconds / 2,
        resend_after=timeouts.resend_after,
        failpoint=connections.failpoint,
    )
    intake = Intake(orders, pauses, utc_now, settle_limit(settings), within=settings.placement_timeout_seconds)
    placement = OrderPlacement(
        orders,
        outbox,
        timeouts,
        utc_now,
        intake,
        require_prices=settings.require_prices,
        within=settings.placement_timeout_seconds,
    )
    actions = OrderActions(orders, outbox, timeouts, utc_now, approval_amount=settings.approval_amount)
    refunds = RefundRequests(orders, outbox, timeouts, utc_now, approval_amount=settings.approval_amount)
    # At most half of the connections, so that waiting requests leave room for others.
    waiting = WaitingRequests(orders, limit=settings.max_connections // 2)
    bookings = WaitingRequests(orders, BOOKED, limit=MAX_CALLS)
    everyone = (waiting, bookings) if settings.grpc_port else (waiting,)
    followers = Followers(orders)
    sweeper = Sweeper(orders, outbox, pauses, timeouts, utc_now, settings.sweep_interval_seconds)
    return Parts(
        handlers=handlers(orders, pauses, timeouts, utc_now, (*everyone, intake)),
        router=create_router(orders, placement, actions, refunds, waiting, followers),
        collections=SCHEMA,
        background=(sweeper.run, outbox.note_published, *(requests.run for requests in everyone), *intake.background),
        stopping=(*(requests.stop for requests in everyone), followers.stop),
        drain=(placement.drain, outbox.drain),
        other_server=grpc_server(settings, orders, placement, actions, followers, bookings)
        if settings.grpc_port
        else None,
    )


def settle_limit(settings: OrderSettings) -> float | None:
    """Return within how many seconds new orders have to settle: well before the saga would give them up."""
    if settings.max_settle_seconds is None:
        return None
    return min(settings.max_settle_seconds, settings.saga_timeout_seconds / 2)


def grpc_server(
    settings: OrderSettings,
    orders: Orders,
    placement: OrderPlacement,
    actions: OrderActions,
    followers: Followers,
    bookings: WaitingRequests,
) -> Callable[[Admission], OtherServer]:
    """Return what makes the gRPC server. Raises StartError if the extra is not installed."""
    try:
        from order_service.rpc.methods import OrderMethods
        from order_service.rpc.server import GrpcServer
    except ImportError:
        raise StartError(
            f"ORDERSAGA_GRPC_PORT={settings.grpc_port} needs the optional extra: pip install 'ordersaga[grpc]'"
        ) from None
    methods = OrderMethods(orders, placement, actions, followers, bookings)
    return lambda admission: GrpcServer(settings, admission, methods)


def main() -> None:
    """Run the service."""
    run(ORDER, OrderSettings, assemble)


if __name__ == "__main__":
    main()
