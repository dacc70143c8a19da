"""Incidents: recorded once by several processes, also after a crash, and shown on the page and by the command."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI, Response
from typer.testing import CliRunner

from operations import cli
from operations.audit.report import Report, Violation
from operations.audit.runs import AuditRuns
from operations.console import ConsoleDependencies, IncidentWatch, outages
from operations.console.outages import Check, StackChecks, check
from operations.dead_letters.schema import GROUPS
from operations.incidents.changes import Release, Seen
from operations.incidents.incident import Incident
from operations.incidents.records import IncidentFilter, IncidentPage, IncidentRecords
from operations.incidents.schema import STATES
from operations.order_actions.schema import BULK_ACTIONS
from operations.schema import SCHEMA
from shared.failpoints import INCIDENT_DECIDED, SimulatedCrashError
from shared.schema import prepare
from shared.services import ORDER
from tests.support.builders import connected
from tests.support.consoles import (
    NO_SERVICES,
    NOWHERE,
    Clock,
    a_letter,
    console_dependencies,
    pages_of,
    record_letters,
    serve,
)
from tests.support.eventually import eventually
from tests.support.processes import run_stack

SECOND = timedelta(seconds=1)
EVERYTHING = IncidentFilter()


class FakeService:
    """A service that says of itself what a test wants."""

    def __init__(self) -> None:
        self.release = Release(datetime(2026, 1, 31, 9, 30, tzinfo=UTC), "1.0.0")
        self.readiness: dict[str, object] = {"status": "ready"}
        self.status = 200

    def application(self) -> FastAPI:
        app = FastAPI()

        @app.get("/healthz")
        def healthz() -> dict[str, str]:
            return {"status": "ok", "version": self.release.version, "startedAt": self.release.started_at.isoformat()}

        @app.get("/readyz")
        def readyz() -> Response:
            return Response(json.dumps(self.readiness), self.status, media_type="application/json")

        return app


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def order_service() -> AsyncIterator[tuple[FakeService, str]]:
    service = FakeService()
    async with serve(service.application()) as url:
        yield service, url


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, clock: Clock, order_service: tuple[FakeService, str]
) -> AsyncIterator[ConsoleDependencies]:
    urls = {ORDER.name: order_service[1]}
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, urls, clock=clock) as found:
        await prepare(found.operations, SCHEMA)
        yield found


async def listed(dependencies: ConsoleDependencies, wanted: IncidentFilter = EVERYTHING) -> IncidentPage:
    return await IncidentRecords(dependencies.operations).page(wanted, limit=100)


async def kinds(dependencies: ConsoleDependencies) -> list[str]:
    return [incident.kind for incident in reversed((await listed(dependencies)).items)]


def a_watch(dependencies: ConsoleDependencies) -> IncidentWatch:
    """The watch of a process of its own."""
    return IncidentWatch(dependencies, StackChecks(dependencies))


async def look(watch: IncidentWatch, clock: Clock, times: int = 2) -> None:
    for _ in range(times):
        clock.now += timedelta(seconds=5)
        await watch.look()


def down(at: str = "down") -> Seen:
    return Seen("service/payment", at, "it refuses connections", "payment")


async def test_ten_processes_that_see_the_same_record_it_once(dependencies: ConsoleDependencies, clock: Clock) -> None:
    ready = asyncio.Barrier(10)

    async def observe(number: int) -> None:
        records = IncidentRecords(dependencies.operations)
        await ready.wait()
        await records.observe([down()], clock.now + number * timedelta(milliseconds=1))

    await asyncio.gather(*(observe(number) for number in range(10)))
    assert await kinds(dependencies) == ["process-down"]


async def test_what_a_process_decided_before_it_died_is_recorded_by_the_next_one(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    def crash(step: str) -> None:
        if step == INCIDENT_DECIDED:
            raise SimulatedCrashError(step)

    with pytest.raises(SimulatedCrashError):
        await IncidentRecords(dependencies.operations, crash).observe([down()], clock.now)
    assert await kinds(dependencies) == []
    await asyncio.gather(*(IncidentRecords(dependencies.operations).finish() for _ in range(2)))
    assert await kinds(dependencies) == ["process-down"]
    with pytest.raises(SimulatedCrashError):
        await IncidentRecords(dependencies.operations, crash).observe([down("up")], clock.now + SECOND)
    # Without `finish`: the next change of the same subject must not lose it either.
    await IncidentRecords(dependencies.operations).observe([down()], clock.now + 2 * SECOND)
    assert await kinds(dependencies) == ["process-down", "process-back", "process-down"]


async def test_a_service_goes_and_comes_back_with_another_release(
    dependencies: ConsoleDependencies, clock: Clock, order_service: tuple[FakeService, str]
) -> None:
    service, _ = order_service
    watches = [a_watch(dependencies) for _ in range(2)]
    for watch in watches:
        await look(watch, clock)
    assert await kinds(dependencies) == []
    service.status, service.readiness = 503, {"down": {"consumer": "it has stopped"}, "since": {}}
    for watch in watches:
        await look(watch, clock, 1)
    assert await kinds(dependencies) == []  # a single look is no incident
    for watch in watches:
        await look(watch, clock, 1)
    service.status, service.readiness = 200, {"status": "ready", "paused": {"since": "2026-01-31T09:30:00Z"}}
    service.release = Release(clock.now, "1.1.0")
    for watch in watches:
        await look(watch, clock)
    found = {incident.kind: incident for incident in (await listed(dependencies)).items}
    assert set(found) == {"process-not-ready", "process-back", "paused", "deployed"}
    assert (await listed(dependencies)).total == 4
    assert found["process-not-ready"].text == "The order service is not ready: consumer: it has stopped"
    assert found["deployed"].text == "The order service runs release 1.1.0, after 1.0.0"


async def test_an_open_breaker_is_no_process_that_is_not_ready(
    dependencies: ConsoleDependencies, clock: Clock, order_service: tuple[FakeService, str]
) -> None:
    service, _ = order_service
    service.readiness = {"status": "degraded", "down": {"breaker": "PoisonError, 5 times in a row"}, "since": {}}
    watch = a_watch(dependencies)
    await look(watch, clock)
    service.readiness = {"status": "ready"}
    await look(watch, clock)
    assert await kinds(dependencies) == ["breaker-open", "breaker-closed"]


async def test_what_went_away_with_mongodb_is_recorded_when_it_is_back(
    dependencies: ConsoleDependencies, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: ConsoleDependencies) -> Check:
        return Check({"MongoDB": "it refuses connections"}, {})

    watches = [a_watch(dependencies) for _ in range(2)]
    for watch in watches:
        await look(watch, clock)
    monkeypatch.setattr(outages, "check", away)
    began = clock.now
    for watch in watches:
        await look(watch, clock, 3)
    monkeypatch.setattr(outages, "check", check)
    for watch in watches:
        await look(watch, clock, 3)
    incidents = (await listed(dependencies)).items
    assert [incident.kind for incident in incidents] == ["server-back", "server-away"]
    assert began < incidents[1].at < incidents[0].at


async def test_packages_audits_groups_and_actions_on_many_are_incidents(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    await dependencies.packages.insert_one({"_id": "103.83", "low": True, "ipv4": 2})
    run = await dependencies.audit_runs.begin("anna")
    assert run is not None
    found = Report(violations=[Violation(1, "counts", "product", "p1", "", "")])
    await dependencies.audit_runs.end(run, found, seconds=1, judged=1)
    await record_letters(dependencies, a_letter("o1"))
    bulk = {"_id": "b1", "action": "cancel", "total": 0, "status": "ended", "at": clock.now, "endedAt": clock.now}
    await dependencies.operations[BULK_ACTIONS].insert_one(bulk)
    clock.now += timedelta(minutes=5)
    for watch in (a_watch(dependencies), a_watch(dependencies)):
        await look(watch, clock)
    incidents = {incident.kind: incident for incident in (await listed(dependencies)).items}
    assert set(incidents) == {"package-low", "audit-failed", "dead-letters", "bulk-ended"}
    assert (await listed(dependencies)).total == 4
    assert incidents["audit-failed"].text == "The books do not balance: 1 violation"
    assert incidents["audit-failed"].link == f"/audit/runs/{run}"


async def test_a_group_that_an_operator_sets_back_to_new_is_no_incident(
    dependencies: ConsoleDependencies, clock: Clock
) -> None:
    old, recent = clock.now - timedelta(days=2), clock.now - timedelta(minutes=5)
    of_all = {"status": "new", "statusAt": recent, "since": old, "errorType": "Poison", "service": "payment"}
    groups = [of_all | {"_id": "set back"}, of_all | {"_id": "reopened", "reopenedAt": recent}]
    await dependencies.operations[GROUPS].insert_many(groups)
    watch = a_watch(dependencies)
    await look(watch, clock, 15)
    assert [incident.link for incident in (await listed(dependencies)).items] == ["/dead-letters/groups/reopened"]


async def test_one_state_is_kept_for_each_subject(dependencies: ConsoleDependencies, clock: Clock) -> None:
    watch = a_watch(dependencies)
    await look(watch, clock, 5)
    kept = await dependencies.operations[STATES].count_documents({})
    await look(watch, clock, 5)
    assert await dependencies.operations[STATES].count_documents({}) == kept


async def test_the_process_looks_and_audits_by_itself(
    mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    async with run_stack(mongodb_url, clean_broker, database_prefix) as stack:
        await stack.start("console", order_url=NOWHERE)
        async with connected(mongodb_url, f"{database_prefix}_operations") as operations:

            async def is_recorded() -> bool:
                wanted = IncidentFilter(kinds=("process-down",), services=("order",))
                return bool((await IncidentRecords(operations).page(wanted, limit=1)).items)

            async def is_audited() -> bool:
                return await AuditRuns(operations).last(answered=True) is not None

            await eventually(is_recorded, 120, "the order service to be missed")
            await eventually(is_audited, 120, "the scheduled audit")


# --- The page and the command. ---


async def fill(dependencies: ConsoleDependencies, now: datetime) -> None:
    """Record 120 incidents, one a minute, every other one of the payment service."""
    records = IncidentRecords(dependencies.operations)
    await records.add(
        [
            Incident(
                f"i{number}",
                now - number * timedelta(minutes=1),
                "process-down" if number % 2 else "restarted",
                f"incident number {number} <b>",
                "service/x",
                "payment" if number % 2 else "order",
                "/runbooks/service-down",
            )
            for number in range(120)
        ]
    )


async def test_the_page_filters_pages_and_counts(dependencies: ConsoleDependencies, clock: Clock) -> None:
    await fill(dependencies, clock.now)
    async with pages_of(dependencies) as pages:
        first = (await pages.get("/incidents")).text
        assert "120 incidents, newest first" in first
        assert 'href="/runbooks/service-down">incident number 0 &lt;b&gt;' in first
        assert 'hx-get="/incidents/live"' in first
        address, texts = "/incidents", []
        while address:
            page = (await pages.get(address)).text
            texts += [part.split(" &lt;")[0] for part in page.split("incident number ")[1:]]
            _, _, rest = page.partition('rel="next"')
            link = page.split('" rel="next"')[0].rpartition('href="')[2] if rest else ""
            address = link.replace("&amp;", "&")
        assert texts == [str(number) for number in range(120)]
        some = (await pages.get("/incidents?severity=critical&service=payment&since=11m&until=2m")).text
        assert "5 incidents that match" in some
        assert 'hx-get="/incidents/live?severity=critical&amp;service=payment' in some
        for wrong in ("kind=nothing", "severity=x", "since=tomorrow", "cursor=x"):
            assert (await pages.get(f"/incidents?{wrong}")).status_code == 422, wrong
        assert "No matching incidents." in (await pages.get("/incidents?kind=failover")).text


async def test_a_page_without_mongodb_says_so(amqp_url: str) -> None:
    nowhere = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100"
    async with console_dependencies(nowhere, amqp_url, "p", NO_SERVICES) as found, pages_of(found) as pages:
        answer: httpx.Response = await pages.get("/incidents")
    assert (answer.status_code, "Not available" in answer.text) == (200, True)


async def test_the_command_lists_what_the_page_shows(
    dependencies: ConsoleDependencies, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(dependencies, clock.now)
    monkeypatch.setenv("ORDERSAGA_MONGODB_URL", dependencies.mongodb_url)
    monkeypatch.setenv("ORDERSAGA_AMQP_URL", dependencies.amqp_url)
    monkeypatch.setenv("ORDERSAGA_DATABASE_PREFIX", dependencies.prefix)

    def run(*words: str) -> tuple[int, str]:
        line = ["incidents", *words]
        result = CliRunner().invoke(cli.build_application(line), line)
        return result.exit_code, result.stdout

    status, text = await asyncio.to_thread(run, "--severity", "critical", "--limit", "2", "--json")
    found = json.loads(text)
    assert (status, found["total"], [item["id"] for item in found["items"]]) == (0, 60, ["i1", "i3"])
    more = await asyncio.to_thread(run, "--severity", "critical", "--limit", "1", "--cursor", found["nextCursor"])
    assert "incident number 5 <b>" in more[1]
    assert "1 of 60 incidents" in more[1]
    for wrong in (["--kind", "x"], ["--service", "x"], ["--since", "x"], ["--cursor", "x"], ["-f", "--until", "1h"]):
        assert (await asyncio.to_thread(run, *wrong))[0] == 2, wrong
