"""The services as the console sees them over HTTP, with fixed answers: stock, slots, packages, locks and webhooks."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from operations.console.upstream import Health, ServiceResponse, Services, Unavailable
from shared.clock import to_rfc3339
from tests.support.consoles import NO_SERVICES

SLOT_START, SLOT_LENGTH = datetime(2026, 3, 14, 9, tzinfo=UTC), timedelta(minutes=30)
SLOT, OPEN_SLOT = (f"slot:{(SLOT_START + hours * timedelta(hours=1)).timestamp():.0f}" for hours in (0, 2))
WEBHOOK, DELIVERY = "wh_4f1c0a7d", "evt_93b8d0c1"
PACKAGE = "203.0.113.x"


def _page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "nextCursor": None, "total": len(items)}


def _slot(number: int, capacity: int, load: int, *, disabled: bool = False) -> dict[str, Any]:
    start = SLOT_START + number * SLOT_LENGTH
    return {
        "slotId": f"slot:{start.timestamp():.0f}",
        "start": to_rfc3339(start),
        "end": to_rfc3339(start + SLOT_LENGTH),
        "capacity": capacity,
        "load": load,
        "disabled": disabled,
    }


def _slots() -> list[dict[str, Any]]:
    """Six slots a day, from the Thursday before to the Sunday after; of the past, those that were booked."""
    loads = ((-94, 410), (-92, 220), (-47, 500), (-46, 75), (0, 480), (1, 120), (2, 500), (3, 0), (4, 35), (5, 0))
    tomorrow = [(48 + number, load) for number, load in enumerate((90, 0, 0, 0, 0, 0))]
    return [_slot(number, 500, load, disabled=number == 3) for number, load in (*loads, *tomorrow)]


def answers(orders: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the answers by path; `orders` are the ids of orders by their names in the incident."""
    in_slot = {"slotStart": "2026-03-14T09:00:00Z", "visibleAt": "2026-03-14T08:30:00Z", "itemsCount": 1}
    lamp = [{"productId": "lamp", "quantity": 2, "price": 45}]
    attempt = {"at": "2026-03-14T09:21:00Z", "status": 500, "error": None, "body": "try again later", "seconds": 0.25}
    delivery = {
        "id": DELIVERY,
        "webhookId": WEBHOOK,
        "type": "order.confirmed",
        "orderId": orders["confirmed"],
        "status": "failed",
        "failureReason": "no attempt is left",
        "attempts": 8,
        "lastAttempt": attempt,
        "nextAttemptAt": None,
        "createdAt": "2026-03-14T08:40:00Z",
        "deliveredAt": None,
    }
    endpoint = {
        "id": WEBHOOK,
        "url": "https://shop.example/hooks/orders",
        "events": ["order.*"],
        "userId": None,
        "description": "the shop's own",
        "ownerId": "shop",
        "enabled": True,
        "disabledReason": None,
        "disabledAt": None,
        "failingSince": "2026-03-14T08:40:00Z",
        "createdAt": "2026-03-01T08:00:00Z",
        "updatedAt": "2026-03-14T08:40:00Z",
    }
    disabled = endpoint | {
        "id": "wh_0b7e55aa",
        "url": "https://old.example/hooks",
        "description": None,
        "enabled": False,
        "disabledReason": "the receiver answered 410: it is gone for good",
        "disabledAt": "2026-03-12T10:00:00Z",
        "failingSince": None,
    }
    lock = {
        "orderId": orders["provisioning"],
        "acquiredAt": "2026-03-14T09:28:30Z",
        "expiresAt": "2026-03-14T09:31:00Z",
    }
    return {
        "/inventory": _page(
            {"productId": "lamp", "quantity": 36, "reserved": 14, "shipped": 120},
            {"productId": "chair", "quantity": 0, "reserved": 3, "shipped": 41},
            {"productId": "server", "quantity": None, "reserved": 5},
        ),
        "/inventory/lamp": {"productId": "lamp", "quantity": 36, "reserved": 14, "shipped": 120, "onSale": True},
        "/products/lamp": {"productId": "lamp", "kind": "goods", "onSale": True},
        "/slots": _page(*_slots()),
        "/slots/config": {
            "durationMinutes": 30,
            "capacity": 500,
            "openTime": "09:00",
            "closeTime": "12:00",
            "cutoffMinutes": 8,
            "leadMinutes": 30,
            "horizonSlots": 7,
        },
        f"/slots/{SLOT}/orders": _page(
            {"orderId": orders["confirmed"], "status": "RESERVED", "items": lamp, **in_slot},
            {"orderId": orders["delivered"], "status": "SHIPPED", "items": lamp, **in_slot},
        ),
        "/packages": _page(
            {"packageId": "1", "name": PACKAGE, "status": "active", "ipv4": 0, "low": True, "lock": lock},
            {"packageId": "2", "name": "198.51.100.x", "status": "active", "ipv4": 12, "low": False, "lock": None},
        ),
        "/locks": _page({"package": "203.0.113", "progressAt": "2026-03-14T09:29:10Z", **lock}),
        "/webhooks": _page(endpoint, disabled),
        "/consumer": {"paused": False, "pause": None},
        f"/webhooks/{WEBHOOK}": endpoint,
        f"/webhooks/{WEBHOOK}/deliveries": _page(delivery),
        f"/webhooks/{WEBHOOK}/deliveries/{DELIVERY}": delivery
        | {"body": '{"type":"order.confirmed"}', "history": [attempt]},
    }


class StandInServices(Services):
    """Answers as the services would, without any of them; what it has no answer for does not exist."""

    def __init__(self, given: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(NO_SERVICES)
        self._given = given

    async def get(self, service: str, path: str, **parameters: str | int) -> ServiceResponse | Unavailable:
        found = self._given.get(unquote(path))
        if found is not None and (since := parameters.get("from")) and (until := parameters.get("to")):
            within = [item for item in found["items"] if str(since) <= item["start"] < str(until)]
            found = found | {"items": within}
        return ServiceResponse(404, {}) if found is None else ServiceResponse(200, found)

    async def health(self, service: str) -> Health:
        return Health(None)
