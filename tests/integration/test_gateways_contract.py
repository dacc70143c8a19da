"""One suite for every gateway: the guarantees that the payment service relies on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

import pytest
from pydantic import SecretStr

from payment_service.gateways.factory import open_gateway
from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    Gateway,
    GatewayKeyReusedError,
    GatewayTimeoutError,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.gateways.simulated import COLLECTION
from payment_service.settings import PaymentSettings
from shared.clock import utc_now
from shared.database import Database
from tests.support import stripe_api
from tests.support.builders import connected, new_id

pytestmark = pytest.mark.parametrize(
    ("kind", "driver"),
    [(kind, driver) for kind in ("simulated", "stripe") for driver in ("pymongo", "memory")] + [("simulated", "motor")],
)
"""Motor calls what PyMongo does, and Stripe's tests take longest: once is enough."""


@dataclass
class Bench:
    """The gateways of two processes over the same records, and the cards and figures that a test needs."""

    gateway: Gateway
    other: Gateway
    good_card: str
    refused_card: str
    held: Callable[[], Awaitable[set[str]]]
    opened_at: datetime = field(default_factory=utc_now)

    def request(self, card: str | None = None, key: str | None = None, amount: int = 1999) -> ChargeRequest:
        return ChargeRequest(key or new_id(), amount, "USD", card or self.good_card, self.opened_at)

    async def authorized(self, amount: int = 1999) -> tuple[ChargeRequest, Authorized]:
        """Authorise an amount."""
        request = replace(self.request(amount=amount), capture=False)
        outcome = await self.gateway.charge(request)
        assert isinstance(outcome, Authorized)
        return request, outcome


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def database(driver: str, mongodb_url: str, database_prefix: str) -> AsyncIterator[Database]:
    async with connected(mongodb_url, f"{database_prefix}_payments", driver) as database:
        yield database


@pytest.fixture
async def bench(kind: Literal["simulated", "stripe"], database: Database) -> AsyncIterator[Bench]:
    async with stripe_api.run_stripe_api() as api:
        settings = PaymentSettings(
            card_gateway=kind,
            stripe_api_key=SecretStr(stripe_api.API_KEY),
            stripe_api_url=api.url,
            gateway_timeout_seconds=60,
        )
        first, second = (open_gateway(settings, database, utc_now) for _ in range(2))

        async def held_by_stripe() -> set[str]:
            return api.held()

        async def held_by_simulation() -> set[str]:
            held = {"outcome": {"$in": ["AUTHORIZED", "CHARGED"]}, "refundedAt": None}
            return {record["_id"] async for record in database[COLLECTION].find(held)}

        if kind == "stripe":
            yield Bench(first, second, stripe_api.VISA, stripe_api.REFUSED, held_by_stripe)
        else:
            yield Bench(first, second, "tok_ok", "tok_declined", held_by_simulation)
        for gateway in (first, second):
            await gateway.drain()


async def test_a_charge_is_made_once_and_every_later_call_returns_the_same(bench: Bench) -> None:
    request = bench.request()
    assert await bench.gateway.look_up(request) is None
    first = await bench.gateway.charge(request)
    assert isinstance(first, Charged)
    assert await bench.other.charge(request) == first
    assert await bench.other.look_up(request) == first
    assert await bench.held() == {request.key}


async def test_a_declined_card_stays_declined_with_its_reason(bench: Bench) -> None:
    request = bench.request(bench.refused_card)
    first = await bench.gateway.charge(request)
    assert isinstance(first, Declined)
    assert "declined" in first.reason
    assert await bench.other.charge(request) == first
    assert await bench.other.charge(bench.request(bench.good_card, key=request.key)) == first
    assert await bench.other.look_up(request) == first
    assert await bench.gateway.refund(request) == NothingCharged(first.reason)
    assert await bench.held() == set()


async def test_a_refund_returns_the_whole_charge_once(bench: Bench) -> None:
    request = bench.request()
    charged = await bench.gateway.charge(request)
    assert isinstance(charged, Charged)
    assert await bench.gateway.refund(request) == Refunded(charged.charge_id)
    assert await bench.other.refund(request) == Refunded(charged.charge_id)
    assert await bench.held() == set()


async def test_a_refunded_charge_counts_as_declined_in_every_later_call(bench: Bench) -> None:
    request = bench.request()
    assert isinstance(await bench.gateway.charge(request), Charged)
    await bench.other.refund(request)
    closed = Declined("The payment was cancelled")
    assert await bench.gateway.charge(request) == closed
    assert await bench.other.look_up(request) == closed
    assert await bench.held() == set()


async def test_a_refund_before_any_charge_closes_the_key(bench: Bench) -> None:
    request = bench.request()
    assert await bench.gateway.refund(request) == NothingCharged()
    late = await bench.other.charge(request)
    assert late == Declined("The payment was cancelled")
    assert await bench.gateway.look_up(request) == late
    assert await bench.other.refund(request) == NothingCharged()
    assert await bench.held() == set()


async def test_a_key_is_for_one_amount(bench: Bench) -> None:
    request = bench.request(amount=1000)
    await bench.gateway.charge(request)
    other = bench.request(key=request.key, amount=5000)
    with pytest.raises(GatewayKeyReusedError):
        await bench.gateway.charge(other)
    with pytest.raises(GatewayKeyReusedError):
        await bench.other.look_up(other)
    assert await bench.held() == {request.key}


async def test_many_charges_at_once_under_one_key_take_the_money_once(bench: Bench) -> None:
    request = bench.request()
    racing = [gateway.charge(request) for _ in range(10) for gateway in (bench.gateway, bench.other)]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert all(isinstance(outcome, Charged | GatewayTimeoutError) for outcome in outcomes), outcomes
    charged = await bench.gateway.look_up(request) or await bench.gateway.charge(request)
    assert {outcome for outcome in outcomes if isinstance(outcome, Charged)} <= {charged}
    assert await bench.held() == {request.key}


async def test_a_charge_and_a_refund_at_once_leave_nothing_held(bench: Bench) -> None:
    requests = [bench.request() for _ in range(30)]
    await asyncio.gather(
        *(bench.gateway.charge(request) for request in requests),
        *(bench.other.refund(request) for request in requests),
        return_exceptions=True,
    )
    # Calls without an answer are repeated, as the reconciler does.
    returned = [await bench.gateway.refund(request) for request in requests]
    late = [await bench.other.charge(request) for request in requests]
    assert await bench.held() == set()
    assert all(isinstance(back, Refunded | NothingCharged) for back in returned)
    assert late == [Declined("The payment was cancelled")] * len(requests)


async def test_parts_of_a_charge_are_returned_once_each_and_never_beyond_it(bench: Bench) -> None:
    request = bench.request()
    charged = await bench.gateway.charge(request)
    assert isinstance(charged, Charged)
    returned = Refunded(charged.charge_id)
    assert await bench.gateway.refund_part(request, "r1", 1000) == returned
    assert await bench.other.refund_part(request, "r1", 1000) == returned
    assert isinstance(await bench.other.refund_part(request, "r2", 1000), RefundRefused)
    assert await bench.held() == {request.key}
    assert await bench.other.refund_part(request, "r3", 999) == returned
    assert await bench.gateway.refund_part(request, "r1", 1000) == returned


async def test_a_whole_refund_returns_what_the_parts_have_left(bench: Bench) -> None:
    request = bench.request()
    charged = await bench.gateway.charge(request)
    assert isinstance(charged, Charged)
    returned = Refunded(charged.charge_id)
    await bench.gateway.refund_part(request, "r1", 1000)
    assert await bench.other.refund(request) == returned
    assert await bench.held() == set()
    assert isinstance(await bench.gateway.refund_part(request, "r2", 1), RefundRefused)
    assert await bench.other.refund_part(request, "r1", 1000) == returned


async def test_many_parts_at_once_return_no_more_than_was_charged(bench: Bench) -> None:
    request = bench.request(amount=10_000)
    await bench.gateway.charge(request)
    racing = [
        gateway.refund_part(request, refund_id, 6000)
        for refund_id in (f"r{number}" for number in range(5))
        for gateway in (bench.gateway, bench.other)
    ]
    await asyncio.gather(*racing, return_exceptions=True)
    # Calls without an answer are repeated, as the reconciler does.
    outcomes = [await bench.other.refund_part(request, f"r{number}", 6000) for number in range(5)]
    assert sum(isinstance(outcome, Refunded) for outcome in outcomes) == 1


async def test_nothing_is_returned_of_a_declined_or_unknown_charge(bench: Bench) -> None:
    declined = bench.request(bench.refused_card)
    await bench.gateway.charge(declined)
    for request in (declined, bench.request()):
        assert isinstance(await bench.gateway.refund_part(request, "r1", 1), RefundRefused)


async def test_an_authorisation_is_captured_once(bench: Bench) -> None:
    request, authorized = await bench.authorized()
    assert await bench.other.charge(request) == authorized
    assert await bench.other.look_up(request) == authorized
    charged = Charged(authorized.charge_id)
    assert await bench.gateway.capture(request) == charged
    assert await bench.other.capture(request) == charged
    assert await bench.other.look_up(request) == charged
    assert await bench.held() == {request.key}
    assert await bench.gateway.refund_part(request, "r1", 1000) == Refunded(authorized.charge_id)
    assert await bench.other.refund(request) == Refunded(authorized.charge_id)
    assert isinstance(await bench.gateway.capture(request), CaptureRefused)
    assert await bench.held() == set()


async def test_an_authorisation_that_is_refunded_is_void_and_never_captured(bench: Bench) -> None:
    request, _ = await bench.authorized()
    assert isinstance(await bench.gateway.refund_part(request, "r1", 1000), RefundRefused)
    assert await bench.other.refund(request) == NothingCharged()
    assert await bench.gateway.refund(request) == NothingCharged()
    assert await bench.gateway.capture(request) == CaptureRefused("The payment was cancelled")
    assert await bench.gateway.charge(request) == Declined("The payment was cancelled")
    assert await bench.held() == set()


async def test_nothing_is_captured_that_was_not_authorised(bench: Bench) -> None:
    declined = replace(bench.request(bench.refused_card), capture=False)
    assert isinstance(await bench.gateway.charge(declined), Declined)
    for request in (declined, bench.request()):
        assert isinstance(await bench.other.capture(request), CaptureRefused)
    assert await bench.held() == set()


async def test_a_capture_and_a_refund_at_once_leave_nothing_held(bench: Bench) -> None:
    requests = [(await bench.authorized())[0] for _ in range(30)]
    await asyncio.gather(
        *(bench.gateway.capture(request) for request in requests),
        *(bench.other.refund(request) for request in requests),
        return_exceptions=True,
    )
    # Calls without an answer are repeated, as the reconciler does.
    returned = [await bench.gateway.refund(request) for request in requests]
    late = [await bench.other.capture(request) for request in requests]
    assert await bench.held() == set()
    assert all(isinstance(back, Refunded | NothingCharged) for back in returned)
    assert all(isinstance(outcome, CaptureRefused) for outcome in late)


async def test_many_captures_at_once_take_the_money_once(bench: Bench) -> None:
    request, authorized = await bench.authorized()
    racing = [gateway.capture(request) for _ in range(10) for gateway in (bench.gateway, bench.other)]
    assert set(await asyncio.gather(*racing)) == {Charged(authorized.charge_id)}
    assert await bench.held() == {request.key}
