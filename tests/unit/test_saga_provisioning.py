"""An order and the job that gets its server, over a network that repeats, reorders and withholds what they say.

Hypothesis draws what happens: deliveries of anything that was ever said, steps of the job, clicks of people, the end
of the hold. Whatever it draws, the order never contradicts the job, and ends as the job did once all has arrived.
"""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from order_service.events import CancelRequested, DeadlinePassed, Event, RefundRequested, RetryRequested
from order_service.order import Order, Status
from order_service.saga import SAGA
from shared import contracts as c
from shared.contracts.inventory import ServerSpecification
from shared.contracts.orders import DeliveryInstruction, Item, PaymentInstruction
from shared.contracts.provisioning import Server
from tests.support.seeds import IS_LONG_FORM

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ID = "0123456789abcdef"
SPECIFICATION = ServerSpecification(package="103.181.91", package_id="7", ram=2048)
SERVER = Server(ip="103.181.91.50")

Answer = c.ProvisioningProgress | c.ProvisioningCompleted | c.ProvisioningFailed


class Job:
    """The provisioning service's side of the conversation, reduced to what the order can observe."""

    def __init__(self) -> None:
        self.state = "NONE"
        self.run = 0
        self.sequence = 0
        self.cancelled_runs = 0
        self.said: list[Answer] = []

    def receive(self, message: c.Message) -> None:
        match message:
            case c.ProvisionServer() if self.state in ("NONE", "FAILED") and message.run > self.run:
                self.state, self.run = "RUNNING", message.run
                self.progress()
            case c.CancelProvisioning():
                self.cancelled_runs = max(self.cancelled_runs, message.run)
                self.run = self.run or message.run
            case _:
                return
        if self.cancelled_runs >= self.run and self.state != "COMPLETED":
            self.fail("Cancelled")

    def progress(self) -> None:
        self.sequence += 1
        self.said.append(
            c.ProvisioningProgress(order_id=ID, step="buy", message=f"{self.sequence}", sequence=self.sequence)
        )

    def fail(self, reason: str) -> None:
        self.state = "FAILED"
        self.said.append(c.ProvisioningFailed(order_id=ID, reason=reason, run=self.run))

    def complete(self) -> None:
        self.state = "COMPLETED"
        self.said.append(c.ProvisioningCompleted(order_id=ID, server=SERVER))


class Conversation(RuleBasedStateMachine):
    """One order for a server, paid and reserved, and its job."""

    def __init__(self) -> None:
        super().__init__()
        self.order = Order(
            order_id=ID,
            user_id="u1",
            items=(Item(product_id="p1", quantity=1, price=500),),
            total_amount=500,
            currency="USD",
            payment=PaymentInstruction(),
            delivery=DeliveryInstruction(),
            created_at=NOW,
            updated_at=NOW,
            deadline=NOW + timedelta(minutes=5),
        )
        self.history: list[tuple[str, str | None]] = []
        self.said: list[c.Message] = []
        self.job = Job()
        self.happens(c.StockReserved(order_id=ID, fulfilment="vps", provisioning=SPECIFICATION))
        self.happens(c.PaymentProcessed(order_id=ID, transaction_id="tx"))

    def happens(self, event: Event) -> None:
        before = self.order
        step = SAGA.advance(before, event, NOW)
        self.order = step.order
        self.said += step.messages
        if step.entry:
            self.history.append((step.entry.event, step.entry.message))
        entered = before.status is not Status.PROVISIONING and self.order.status is Status.PROVISIONING
        assert self.order.provisioning_run == before.provisioning_run + entered
        if before.status in (Status.COMPLETED, Status.CANCELLED):
            assert self.order.status is before.status

    @precondition(lambda self: self.job.said)
    @rule(data=st.data())
    def the_order_hears(self, data: st.DataObject) -> None:
        for answer in data.draw(st.lists(st.sampled_from(self.job.said), min_size=1, max_size=5)):
            self.happens(answer)

    @rule(data=st.data())
    def the_job_hears(self, data: st.DataObject) -> None:
        for message in data.draw(st.lists(st.sampled_from(self.said[::-1]), min_size=1, max_size=5)):
            self.job.receive(message)

    @precondition(lambda self: SAGA.accepts(self.order, RetryRequested()))
    @rule()
    def an_operator_retries(self) -> None:
        self.happens(RetryRequested())

    # Late, so that most conversations are longer; the first run is no different from the others.
    @precondition(lambda self: self.order.provisioning_run > 1)
    @rule(request=st.sampled_from([CancelRequested("no more"), RefundRequested(), DeadlinePassed()]))
    def the_order_is_given_up(self, request: CancelRequested | RefundRequested | DeadlinePassed) -> None:
        if SAGA.accepts(self.order, request):
            self.happens(request)

    @rule()
    def the_sweep_publishes_the_order_again(self) -> None:
        self.said += SAGA.state_messages(self.order)

    @precondition(lambda self: self.job.state == "RUNNING")
    @rule()
    def the_job_says_something(self) -> None:
        self.job.progress()

    @precondition(lambda self: self.job.state == "RUNNING")
    @rule()
    def the_job_fails(self) -> None:
        self.job.fail("no address")

    @precondition(lambda self: self.job.state == "RUNNING")
    @rule()
    def the_job_completes(self) -> None:
        self.job.complete()

    @invariant()
    def a_failure_is_that_of_the_present_run(self) -> None:
        if self.order.status in (Status.FAILED, Status.CANCELLED):
            assert (self.job.state, self.job.run) == ("FAILED", self.order.provisioning_run)

    @invariant()
    def a_server_is_paid_for(self) -> None:
        if self.job.state == "COMPLETED":
            assert not self.order.compensating
        if self.order.status is Status.COMPLETED:
            assert self.job.state == "COMPLETED"
            assert (self.order.stock_status, self.order.payment_status) == ("RESERVED", "PROCESSED")
            assert self.order.server == SERVER

    @invariant()
    def progress_is_recorded_once_and_in_order(self) -> None:
        numbers = [int(words or 0) for event, words in self.history if event == "provisioning.progress"]
        assert numbers == sorted(set(numbers))

    @invariant()
    def what_is_asked_for_is_the_present_run(self) -> None:
        if self.order.status is Status.PROVISIONING:
            asked = [message for message in SAGA.state_messages(self.order) if isinstance(message, c.ProvisionServer)]
            assert [message.run for message in asked] == [self.order.provisioning_run]
            assert self.order.failure_reason is None

    def teardown(self) -> None:
        """Deliver everything, the oldest last: the order then agrees with its job."""
        for message in (*SAGA.state_messages(self.order), *reversed(self.said)):
            self.job.receive(message)
        if self.job.state == "RUNNING":
            self.job.complete()
        for answer in reversed(self.job.said):
            self.happens(answer)
        ends = {"COMPLETED": (Status.COMPLETED,), "FAILED": (Status.FAILED, Status.CANCELLED)}
        assert self.order.status in ends[self.job.state]
        assert (self.order.status is Status.CANCELLED) == (self.order.cancel_requested and self.job.state == "FAILED")


Conversation.TestCase.settings = settings(max_examples=200 if IS_LONG_FORM else 100, stateful_step_count=40)
TestConversation = Conversation.TestCase
