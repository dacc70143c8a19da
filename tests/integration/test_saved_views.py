"""Saved views: the team shares them, they are bounded, and no view breaks its list."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from operations.actions import list_actions
from operations.console import ConsoleDependencies
from operations.saved_views.query import LISTS
from operations.saved_views.records import LONGEST_NAME, MOST_VIEWS, SavedViews
from operations.saved_views.schema import SCHEMA
from shared import schema
from shared.access.permissions import Role
from tests.support.access import KEYS, bearer
from tests.support.consoles import console_dependencies, pages_of

ORDERS = LISTS["/orders"]


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(mongodb_url, amqp_url, database_prefix) as found:
        await schema.prepare(found.operations, SCHEMA)
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


def by(role: Role) -> dict[str, Any]:
    return {"headers": bearer(KEYS[role])}


async def save(pages: httpx.AsyncClient, name: str, query: str, path: str = "/orders", **by: Any) -> httpx.Response:
    return await pages.post(f"{path}/views", data={"name": name, "query": query}, **by)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/orders", "status=FAILED&open=1"),
        ("/dead-letters", "inbox=order.inbox&sort=newest"),
        ("/dead-letters/list", "service=order&span=24h"),
        ("/incidents", "severity=critical"),
    ],
)
async def test_a_view_is_saved_from_its_list_seen_by_the_team_and_deleted(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient, path: str, query: str
) -> None:
    shown = (await pages.get(f"{path}?{query}")).text
    assert "Save this view…" in shown
    saved = await save(pages, " Night shift ", query, path)
    assert (saved.status_code, saved.headers["location"]) == (303, f"{path}?{query}")
    address = f'href="{path}?{query}"'.replace("&", "&amp;")
    seen = (await pages.get(path, **by(Role.VIEWER))).text
    assert f"{address} title=" in seen
    assert "Night shift" in seen
    current = (await pages.get(f"{path}?{query}")).text
    assert "Save this view…" not in current
    delete = current.partition('method="post" action="')[2].partition('"')[0]
    assert (await pages.post(delete)).headers["location"] == f"{path}?{query}"
    assert "Night shift" not in (await pages.get(path)).text
    assert (await pages.post(delete)).status_code == 404
    logged = (await list_actions(dependencies.operations)).items
    assert [(entry["action"], entry["subject"]) for entry in logged] == [
        ("view.delete", "Night shift"),
        ("view.save", "Night shift"),
    ]
    assert f"{path}?{query}" in logged[1]["outcome"]


async def test_who_may_not_see_a_list_neither_saves_nor_deletes_its_views(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    assert (await save(pages, "x", "kind=failover", "/incidents", **by(Role.ACCOUNTANT))).status_code == 403
    await save(pages, "mine", "status=FAILED", **by(Role.VIEWER))
    (view,) = await SavedViews(dependencies.operations).of(ORDERS)
    delete = f"/orders/views/{view.id}/delete"
    shown = "/orders?status=FAILED"
    assert "Delete this view…" in (await pages.get(shown, **by(Role.VIEWER))).text
    assert "Delete this view…" not in (await pages.get(shown, **by(Role.ACCOUNTANT))).text
    refused = await pages.post(delete, headers=bearer(KEYS[Role.ACCOUNTANT]))
    assert (refused.status_code, "saved this view" in refused.text) == (403, True)
    for wrong in (f"/incidents/views/{view.id}/delete", "/orders/views/none/delete"):
        assert (await pages.post(wrong)).status_code == 404
    assert (await pages.post(delete, headers=bearer(KEYS[Role.OPERATOR]))).status_code == 303
    assert await SavedViews(dependencies.operations).of(ORDERS) == []


async def test_names_and_free_text_are_not_saved_and_the_form_says_so(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    query = "status=FAILED&customer=Ann+Smith&reason=Ann+called"
    shown = (await pages.get(f"/orders?{query}")).text
    assert "Not saved, as it may be personal data: customer, reason." in shown
    await save(pages, "x", query)
    (view,) = await SavedViews(dependencies.operations).of(ORDERS)
    assert view.query == "status=FAILED"


async def test_a_post_of_another_site_changes_nothing(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert (await save(pages, "x", "status=FAILED", headers=elsewhere)).status_code == 403
    assert await SavedViews(dependencies.operations).of(ORDERS) == []
    await save(pages, "x", "status=FAILED")
    (view,) = await SavedViews(dependencies.operations).of(ORDERS)
    assert (await pages.post(f"/orders/views/{view.id}/delete", headers=elsewhere)).status_code == 403
    assert await SavedViews(dependencies.operations).of(ORDERS) == [view]


async def test_names_numbers_and_queries_are_bounded(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    for name, query in (("", "open=1"), (" ", "open=1"), ("n" * (LONGEST_NAME + 1), "open=1"), ("n", "x" * 2001)):
        assert (await save(pages, name, query)).status_code == 422, (name, query)
    for nothing in ("", "cursor=1", "customer=Ann", "/incidents?kind=failover"):
        refused = await save(pages, "n", nothing)
        assert (refused.status_code, "has no filter of this list" in refused.text) == (422, True)
    for number in range(MOST_VIEWS):
        assert (await save(pages, f"n{number}", f"user=u{number}")).status_code == 303
    assert (await save(pages, "one more", "open=1")).status_code == 409
    assert "as many views as it can have" in (await pages.get("/orders?open=1")).text
    views = SavedViews(dependencies.operations)
    await views.remove((await views.of(ORDERS))[0])
    assert (await save(pages, "n9", "open=1")).status_code == 409, "the name is used"


async def test_a_view_of_an_earlier_release_does_not_break_its_list(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    views = SavedViews(dependencies.operations)
    await views.add(ORDERS, "partly <gone>", "colour=red&status=FAILED", "somebody")
    await views.add(ORDERS, "all gone", "colour=red", "somebody")
    shown = await pages.get("/orders")
    assert shown.status_code == 200
    assert '<a href="/orders?status=FAILED" title="Saved by somebody">partly &lt;gone&gt;</a>' in shown.text
    assert '<a href="/orders" title="Saved by somebody">all gone</a>' in shown.text
    assert (await pages.get("/orders?status=FAILED")).status_code == 200
