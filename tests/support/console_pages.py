"""The pages of the console in an incident: an address, or several, for each route that renders one.

A new route that answers GET must be named here: in PAGES, so that tests look at it, or in NOT_PAGES.
"""

from collections.abc import Iterator, Mapping

from fastapi import FastAPI

from shared.access.middleware import API_BESIDE_PAGES
from tests.support.routes import routes_of
from tests.support.stand_in_services import DELIVERY, OPEN_SLOT, SLOT, WEBHOOK

PAGES: Mapping[str, Mapping[str, str]] = {
    "/": {"overview": "/"},
    "/orders": {
        "orders": "/orders",
        "orders-not-found": "/orders?user=nobody",
        "orders-view": "/orders?status=FAILED&open=1",
    },
    "/orders/{order_id}": {
        "order": "/orders/{confirmed}",
        "order-server": "/orders/{completed}",
        "order-cancelled": "/orders/{declined}",
        "order-failed": "/orders/{failed}",
        "order-stuck": "/orders/{stuck}",
        "order-unknown": "/orders/{unknown}",
    },
    "/orders/{order_id}/do/cancel": {"order-cancel": "/orders/{stuck}/do/cancel"},
    "/orders/{order_id}/do/deliver": {"order-deliver": "/orders/{confirmed}/do/deliver"},
    "/orders/{order_id}/do/retry": {"order-retry": "/orders/{failed}/do/retry"},
    "/orders/{order_id}/do/refund": {"order-refund": "/orders/{failed}/do/refund"},
    "/orders/{order_id}/do/nudge": {"order-nudge": "/orders/{stuck}/do/nudge"},
    "/orders/{order_id}/refund-part": {"order-refund-part": "/orders/{confirmed}/refund-part"},
    "/orders/{order_id}/release": {"order-release": "/orders/{unknown}/release"},
    "/bulk-actions": {"orders-actions": "/bulk-actions"},
    "/bulk-actions/cancel": {"orders-cancel": "/bulk-actions/cancel?order={stuck}"},
    "/bulk-actions/retry": {"orders-retry": "/bulk-actions/retry?order={failed}"},
    "/bulk-actions/refund": {"orders-refund": "/bulk-actions/refund?order={failed}"},
    "/bulk-actions/nudge": {"orders-nudge": "/bulk-actions/nudge?order={stuck}"},
    "/bulk-actions/results/{bulk_id}": {"orders-results": "/bulk-actions/results/{bulk}"},
    "/inventory": {"inventory": "/inventory"},
    "/products/{product_id}/sale": {"product-sale": "/products/lamp/sale"},
    "/products/{product_id}/restock": {"product-restock": "/products/lamp/restock"},
    "/slots": {"slots": "/slots", "slots-none": "/slots?week=2026-02-02"},
    "/slots/{slot_id}": {"slot": f"/slots/{SLOT}", "slot-free": f"/slots/{OPEN_SLOT}"},
    "/slots/{slot_id}/change": {"slot-change": f"/slots/{OPEN_SLOT}/change"},
    "/packages": {"packages": "/packages"},
    "/packages/{package}/sale": {"package-sale": "/packages/203.0.113.x/sale"},
    "/jobs": {"jobs": "/jobs", "jobs-not-found": "/jobs?package=none"},
    "/jobs/{order_id}": {"job": "/jobs/{provisioning}", "job-failed": "/jobs/{failed}"},
    "/locks": {"lock-clear": "/locks?package=203.0.113"},
    "/webhooks": {"webhooks": "/webhooks"},
    "/webhooks/{webhook_id}": {"webhook": f"/webhooks/{WEBHOOK}"},
    "/webhooks/{webhook_id}/deliveries/{delivery_id}": {"delivery": f"/webhooks/{WEBHOOK}/deliveries/{DELIVERY}"},
    "/audit": {"audit": "/audit"},
    "/audit/runs/{run_id}": {"audit-run": "/audit/runs/{run}"},
    "/incidents": {"incidents": "/incidents", "incidents-not-found": "/incidents?kind=failover"},
    "/notifications": {"notifications": "/notifications"},
    "/consumers": {"consumers": "/consumers"},
    "/consumers/{service}/{what}": {
        "consumer-pause": "/consumers/inventory/pause",
        "consumer-resume": "/consumers/payment/resume",
    },
    "/search": {"search": "/search?q=lamp", "search-not-found": "/search?q=nothing"},
    "/dead-letters": {"dead-letters": "/dead-letters"},
    "/dead-letters/groups/{fingerprint}": {"group": "/dead-letters/groups/{group}"},
    "/dead-letters/groups/{fingerprint}/preview": {"group-preview": "/dead-letters/groups/{group}/preview"},
    "/dead-letters/list": {"letters": "/dead-letters/list", "letters-not-found": "/dead-letters/list?text=nothing"},
    "/dead-letters/letters/{letter_id}": {
        "letter": "/dead-letters/letters/{letter}",
        "letter-discarded": "/dead-letters/letters/{discarded}",
        "letter-binary": "/dead-letters/letters/{binary}",
    },
    "/dead-letters/many/replay": {"letters-replay": "/dead-letters/many/replay?letter={letter}"},
    "/dead-letters/many/edit": {"letters-edit": "/dead-letters/many/edit?matching=1&group={group}"},
    "/dead-letters/many/discard": {"letters-discard": "/dead-letters/many/discard?letter={letter}"},
    "/dead-letters/many/restore": {"letters-restore": "/dead-letters/many/restore?letter={discarded}"},
    "/dead-letters/letters/{letter_id}/edit": {"letter-edit": "/dead-letters/letters/{letter}/edit"},
    "/dead-letters/replays": {"replays": "/dead-letters/replays"},
    "/dead-letters/replays/{replay_id}": {"replay": "/dead-letters/replays/{replay}"},
    "/actions": {"actions": "/actions"},
    "/approvals": {"approvals": "/approvals"},
    "/sign-in": {"sign-in": "/sign-in"},
    "/runbooks/{name}": {"runbook": "/runbooks/dependency-down"},
    "/{address:path}": {"not-found": "/no/such/page"},
}
"""By the path of the route, the names of its pages and their addresses; `{…}` is an id of the incident."""

STATUSES: Mapping[str, int] = {"not-found": 404}
"""The pages whose HTTP status is not 200."""

NOT_PAGES = {
    "/overview": "a part of /",
    "/overview/figures": "a part of /",
    "/overview/charts": "a part of /",
    "/outages": "a part of every page",
    "/audit/result": "a part of /audit",
    "/incidents/live": "a part of /incidents",
    "/notifications/messages": "a part of /notifications",
    "/orders/{order_id}/timeline": "a part of the page of an order",
    "/bulk-actions/results/{bulk_id}/progress": "a part of the results",
    "/dead-letters/replays/{replay_id}/progress": "a part of the page of a replay",
    "/dead-letters/letters/{letter_id}/body": "a download",
    "/static/{name}": "files",
    "/docs": "of every service, about its API",
    "/docs/{name}": "files",
    "/sign-in/link": "needs a link that is valid; has the form of one button",
    "/healthz": "for machines",
    "/readyz": "for machines",
    "/problems/{name}": "of every service, about an error",
    "/metrics": "for machines",
    "/me": "for machines",
}
"""The other routes that answer GET, and why they are no pages."""


def addresses(ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the address of each page."""
    for pages in PAGES.values():
        for name, address in pages.items():
            yield name, address.format(**ids)


def routes_for_get(app: FastAPI) -> set[str]:
    """Return the paths of the console's own routes that answer GET; those of the API are for programs."""
    found = {route.path for route in routes_of(app) if "GET" in (route.methods or ())}
    return {path for path in found if not path.startswith(API_BESIDE_PAGES)}
