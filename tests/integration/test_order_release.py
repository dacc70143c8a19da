"""`ordersaga order release` over real servers: stock and money of an unknown order are released once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest
from pymongo import AsyncMongoClient
from typer.testing import CliRunner

from operations import cli
from operations.actions import list_actions
from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from shared.database import Document
from shared.topology import INVENTORY_INBOX, PAYMENT_INBOX
from tests.support.buses import RabbitHarness
from tests.support.servers import Servers


@dataclass
class Made:
    """The traces of a forged `order.created`."""

    client: AsyncMongoClient[Document]
    prefix: str
    servers: Servers
    harness: RabbitHarness

    async def run(
        self, *words: str, given: str | None = None, status: int = 0, amqp_url: str = "", command: str = "release"
    ) -> str:
        environment = {
            "ORDERSAGA_MONGODB_URL": self.servers.mongodb_url,
            "ORDERSAGA_AMQP_URL": amqp_url or self.servers.amqp_url,
            "ORDERSAGA_DATABASE_PREFIX": self.prefix,
            "ORDERSAGA_OPERATOR": "ann",
        }
        runner, arguments = CliRunner(env=environment), ["order", command, *words]
        result = await asyncio.to_thread(runner.invoke, cli.build_application(arguments), arguments, input=given)
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    async def log(self) -> list[tuple[str, ...]]:
        items = (await list_actions(self.client[f"{self.prefix}_operations"])).items
        return [tuple(item[name] for name in ("by", "why", "action", "subject", "outcome")) for item in items]


@pytest.fixture
async def made(servers: Servers, database_prefix: str) -> AsyncIterator[Made]:
    client = AsyncMongoClient[Document](servers.mongodb_url, tz_aware=True, w="majority")
    async with client, RabbitHarness.open(servers.amqp_url) as harness:
        await client[f"{database_prefix}_inventory"]["reservations"].insert_one({"_id": "ghost", "status": "RESERVED"})
        await client[f"{database_prefix}_payments"]["payments"].insert_one({"_id": "ghost", "status": "PROCESSED"})
        yield Made(client, database_prefix, servers, harness)


async def test_stock_and_money_of_an_unknown_order_are_returned_and_the_log_names_the_operator(made: Made) -> None:
    assert "sent" not in await made.run("ghost", given="n\n", status=1)
    printed = await made.run("ghost", "--why", "a forged message", given="y\n")
    assert "stock RESERVED, payment PROCESSED" in printed
    assert "ordersaga order timeline ghost" in printed
    assert f"(databases {made.prefix}_*)" in printed
    assert "stock RESERVED, payment PROCESSED" in await made.run("ghost", command="timeline")
    (release,) = await made.harness.take_from(INVENTORY_INBOX, 1)
    (refund,) = await made.harness.take_from(PAYMENT_INBOX, 1)
    assert (release.type, orjson.loads(release.body)) == ("stock.release", {"orderId": "ghost", "items": []})
    assert (refund.type, orjson.loads(refund.body)["orderId"]) == ("payment.refund", "ghost")
    assert await made.log() == [
        ("ann", "a forged message", "order.release", "ghost", "stock.release and payment.refund sent"),
        ("ann", "a forged message", "order.release", "ghost", "started"),
    ]


async def test_an_order_that_exists_and_one_that_holds_nothing_are_refused(made: Made) -> None:
    await made.client[f"{made.prefix}_orders"]["orders"].insert_one({"_id": "ghost", "status": "CONFIRMED"})
    refused = await made.run("ghost", "--why", "because", "--yes", status=1)
    assert "the order service knows order ghost (CONFIRMED)" in refused
    assert "nothing is held for order unknown" in await made.run("unknown", "--why", "because", "--yes", status=1)
    await made.run("ghost", "--yes", status=2)
    await made.harness.take_from(INVENTORY_INBOX, 0)
    assert await made.log() == []


async def test_as_much_money_as_needs_a_second_person_is_asked_for(made: Made) -> None:
    await made.client[f"{made.prefix}_payments"]["payments"].update_one({"_id": "ghost"}, {"$set": {"amount": 500}})
    await ApprovalRecords(made.client[f"{made.prefix}_operations"]).publish(ApprovalPolicy(500))
    assert "ordersaga order release ghost" in await made.run("ghost", command="timeline")
    asked = await made.run("ghost", "--why", "because", "--yes", status=1)
    assert "nothing is done yet: order.release needs a second person" in asked
    await made.harness.take_from(PAYMENT_INBOX, 0)
    assert [entry[2:] for entry in await made.log()] == [("order.release", "ghost", "asked for a second person")]


async def test_an_unreachable_broker_is_reported_and_logged(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations.reading.connection.BUS_SECONDS", 1.0)
    result = await made.run("ghost", "--why", "because", "--yes", status=1, amqp_url="amqp://127.0.0.1:1/")
    assert "were sent" not in result
    outcomes = [entry[-1] for entry in await made.log()]
    assert outcomes[0].startswith("outcome unknown: RabbitMQ does not answer")
    assert outcomes[1] == "started"
