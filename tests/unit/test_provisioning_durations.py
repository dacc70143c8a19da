"""How long provisioning takes, as docs/provisioning.md says: recomputed by the lifecycle, with the default settings."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provisioning_service import lifecycle
from provisioning_service.__main__ import timeouts_from
from provisioning_service.job import State
from provisioning_service.provider import Access
from provisioning_service.settings import ProvisioningSettings
from shared.contracts import ProvisionServer

PAGE = (Path(__file__).parents[2] / "docs/provisioning.md").read_text()
START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = ProvisioningSettings(mongodb_url="mongodb://unused", amqp_url="amqp://unused")
TIMEOUTS = timeouts_from(SETTINGS)
STOCK = timedelta(seconds=SETTINGS.stock_timeout_seconds)
BUY = timedelta(seconds=SETTINGS.buy_timeout_seconds)
STATUS = timedelta(seconds=SETTINGS.status_timeout_seconds)
AT_ONCE = timedelta()


class Run:
    """A job and the time, which passes while the provider is asked and while the job waits."""

    def __init__(self) -> None:
        self.now = START
        order = ProvisionServer(order_id="o1", user_id="u1", package="103.181.91", ram=2048)
        self.job = lifecycle.requested(order, self.now, 1)

    def buy(self, *, stock: timedelta, buy: timedelta, answered: bool) -> None:
        """Make an attempt to buy; without an answer, search for what it bought, in vain."""
        self._wait()
        self.now += stock
        self.job = lifecycle.buy_started(self.job, "103.181.91.1", ["103.181.91.1"], self.now, TIMEOUTS)
        self.now += buy
        if answered:
            self.job = lifecycle.bought(self.job, "103.181.91.1", "the provider assigned", self.now)
            return
        self.job = lifecycle.no_address_received(self.job, "no answer", self.now, answered=False)
        self.now += stock
        self.job = lifecycle.nothing_bought(self.job, self.now, TIMEOUTS)

    def ask(self, *, status: timedelta, answered: bool) -> None:
        """Ask for the access to the server."""
        self._wait()
        self.now += status
        if answered:
            access = Access(ip="103.181.91.1", username="root", password="secret", os=None, expires_at=None)
            self.job = lifecycle.completed(self.job, access, b"sealed", self.now)
        else:
            self.job = lifecycle.status_failed(self.job, "no answer", self.now, TIMEOUTS)

    def _wait(self) -> None:
        if self.job.state is State.WAITING and self.job.due_at is not None:
            self.now = self.job.due_at
        self.job = replace(lifecycle.claimed(self.job, self.now, TIMEOUTS.lease), ip=self.job.ip)

    def ended(self, state: State) -> timedelta:
        """Return how long the run took until it ended in this state."""
        assert self.job.state is state, self.job
        return self.now - START


def best() -> timedelta:
    run = Run()
    run.buy(stock=AT_ONCE, buy=AT_ONCE, answered=True)
    run.ask(status=AT_ONCE, answered=True)
    return run.ended(State.COMPLETED)


def usual() -> timedelta:
    run = Run()
    run.buy(stock=AT_ONCE, buy=AT_ONCE, answered=True)
    run.ask(status=AT_ONCE, answered=False)
    run.ask(status=AT_ONCE, answered=True)
    return run.ended(State.COMPLETED)


def worst(*, completed: bool) -> timedelta:
    run = Run()
    for number in range(1, TIMEOUTS.buy_attempts + 1):
        run.buy(stock=STOCK, buy=BUY, answered=number == TIMEOUTS.buy_attempts)
    for number in range(1, TIMEOUTS.status_attempts + 1):
        run.ask(status=STATUS, answered=completed and number == TIMEOUTS.status_attempts)
    return run.ended(State.COMPLETED if completed else State.FAILED)


def nothing_for_sale() -> timedelta:
    run = Run()
    for _ in range(TIMEOUTS.buy_attempts):
        run.buy(stock=STOCK, buy=BUY, answered=False)
    return run.ended(State.FAILED)


def turn() -> timedelta:
    """The longest wait for a package whose holder makes no progress, until the run is given up."""
    job, now, waited = Run().job, START, 0
    while not job.ended:
        now += TIMEOUTS.lock_wait
        waited += 1
        assert waited <= TIMEOUTS.lock_attempts
        job = lifecycle.lock_wait_timed_out(job, "another", START, now, TIMEOUTS)
    return now - START


CASES = {
    "best": best(),
    "usual": usual(),
    "worst, completed": worst(completed=True),
    "worst, not ready": worst(completed=False),
    "worst, not bought": nothing_for_sale(),
    "no turn": turn(),
}


def in_words(duration: timedelta) -> str:
    minutes, seconds = divmod(int(duration.total_seconds()), 60)
    parts = [f"{minutes} min"] * bool(minutes) + [f"{seconds} s"] * bool(seconds)
    return " ".join(parts) or "0 s"


def rows() -> Iterator[tuple[str, str]]:
    for case, duration in re.findall(r"^\| ([a-z, ]+) \| [^|]+ \| ([\d a-z]+) \|$", PAGE, re.MULTILINE):
        if case in CASES:
            yield case, duration


def test_the_table_has_every_case_once() -> None:
    assert [case for case, _ in rows()] == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_table_says_what_the_settings_yield(case: str) -> None:
    assert dict(rows())[case] == in_words(CASES[case])


def test_the_cases_are_in_their_order() -> None:
    assert CASES["best"] < CASES["usual"] < CASES["worst, not bought"] < CASES["worst, completed"]
