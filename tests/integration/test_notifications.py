"""Notifications over real HTTP and SMTP servers: signed, once per rule, again after a failure, and never a secret."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email import message_from_bytes
from email.message import Message as Mail
from email.policy import default as email_policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from typer.testing import CliRunner

from notification_service.sender import Sender
from operations import cli
from operations.actions import list_actions
from operations.commands import rules_desk as command
from operations.console import ConsoleDependencies
from operations.incidents.incident import Incident
from operations.incidents.records import IncidentRecords
from operations.incidents.schema import INCIDENTS
from operations.notifications import records as notification_records
from operations.notifications import rules
from operations.notifications.channels import Channels, Destinations
from operations.notifications.dispatcher import Dispatcher
from operations.notifications.mail import MailServer, Security, Sent, send_mail
from operations.notifications.records import (
    FAILED,
    LATE,
    LEASE,
    PENDING,
    RECENT,
    SENT,
    NotificationRecords,
)
from operations.notifications.rules import GATHER, INTERVAL, MARGIN, RETRIES, Rule
from operations.notifications.schema import NOTIFICATIONS
from operations.schema import SCHEMA
from shared.clock import utc_now
from shared.database import Document
from shared.schema import prepare
from tests.support.certificates import Certificates
from tests.support.consoles import BY_ADMIN, Clock, console_dependencies, pages_of
from tests.support.eventually import eventually
from tests.support.shop_receivers import FAIL, OK, REDIRECT, RESET, Receiver, run_receiver
from tests.support.tasks import end_tasks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRET_PATH = "/T0/secret-part"
SECOND = timedelta(seconds=1)


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def dependencies(
    mongodb_url: str, amqp_url: str, database_prefix: str, clock: Clock
) -> AsyncIterator[ConsoleDependencies]:
    async with console_dependencies(
        mongodb_url, amqp_url, database_prefix, clock=clock, channels=("webhook", "slack")
    ) as found:
        await prepare(found.operations, SCHEMA)
        yield found


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with run_receiver() as running:
        yield running


async def dispatch(dispatcher: Dispatcher) -> None:
    """Send what is due, and wait for what comes of it."""
    await dispatcher.work()
    await dispatcher.finish()


@dataclass
class World:
    """Incidents, rules, and what is sent to one receiver."""

    dependencies: ConsoleDependencies
    clock: Clock
    records: NotificationRecords
    incidents: IncidentRecords
    channels: Channels

    def dispatcher(self) -> Dispatcher:
        return Dispatcher(self.records, self.channels, "https://console.example.org")

    async def happen(self, *names: str, kind: str = "process-down") -> None:
        await self.incidents.add(
            [Incident(name, self.clock.now, kind, f"{name} happened", "service/payment", "payment") for name in names]
        )

    async def pass_time(self, span: timedelta) -> None:
        self.clock.now += span
        await dispatch(self.dispatcher())

    async def messages(self) -> list[Document]:
        return list(reversed(await self.records.latest(100)))


@pytest.fixture
async def world(dependencies: ConsoleDependencies, clock: Clock, receiver: Receiver) -> AsyncIterator[World]:
    destinations = Destinations(f"{receiver.url}/hook", SECRET, receiver.url + SECRET_PATH)
    channels = Channels(destinations, Sender(allow_private=True, timeout=30))
    operations = dependencies.operations
    yield World(
        dependencies,
        clock,
        NotificationRecords(operations, clock),
        IncidentRecords(operations, clock=clock),
        channels,
    )
    await channels.close()


# --- Which incidents are in which message. ---


async def test_an_outage_of_forty_incidents_is_one_message(world: World, receiver: Receiver) -> None:
    await world.records.add(Rule("all", "webhook"))
    for number in range(40):
        world.clock.now += timedelta(milliseconds=500)
        await world.happen(f"i{number}")
    await world.pass_time(GATHER)
    await world.pass_time(SECOND)
    (only,) = receiver.received
    assert only.content["data"]["count"] == 40
    assert only.is_signed_with(SECRET)
    assert only.content["data"]["page"] == "https://console.example.org/incidents"
    await world.happen("later")
    await world.pass_time(INTERVAL - GATHER)
    assert len(receiver.received) == 1
    await world.pass_time(GATHER)
    assert [item["id"] for item in receiver.received[1].content["data"]["incidents"]] == ["later"]


async def test_a_rule_gets_what_it_is_about_and_only_from_now_on(world: World, receiver: Receiver) -> None:
    await world.happen("before")
    world.clock.now += SECOND
    await world.records.add(Rule("critical", "webhook", severities=("critical",), services=("payment",)))
    world.clock.now += SECOND
    await world.happen("wanted")
    await world.happen("harmless", kind="process-back")
    await world.pass_time(GATHER + MARGIN)
    (only,) = receiver.received
    assert [item["id"] for item in only.content["data"]["incidents"]] == ["wanted"]
    await world.records.enable("critical", False)
    await world.happen("while it is off")
    await world.pass_time(INTERVAL)
    await world.records.enable("critical", True)
    await world.pass_time(INTERVAL)
    assert len(receiver.received) == 1


async def test_several_processes_send_a_message_once(world: World, receiver: Receiver) -> None:
    await world.records.add(Rule("all", "webhook"))
    world.clock.now += SECOND
    await world.happen("i1", "i2")
    world.clock.now += GATHER + MARGIN
    await asyncio.gather(*(dispatch(world.dispatcher()) for _ in range(8)))
    await asyncio.gather(*(dispatch(world.dispatcher()) for _ in range(8)))
    assert [each.content["data"]["count"] for each in receiver.received] == [2]


async def test_a_process_that_dies_between_the_two_steps_loses_and_repeats_nothing(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.records.add(Rule("all", "webhook"))
    world.clock.now += SECOND
    await world.happen("i1")
    rules = world.records._rules

    async def dies(*_: object, **__: object) -> None:
        raise ConnectionError("killed")

    class Dying:
        find = rules.find
        update_one = staticmethod(dies)

    world.clock.now += GATHER + MARGIN
    monkeypatch.setattr(world.records, "_rules", Dying())
    with pytest.raises(ConnectionError):
        await world.records.open_due()
    monkeypatch.setattr(world.records, "_rules", rules)
    await world.happen("i2")
    await world.pass_time(SECOND)
    await world.pass_time(INTERVAL + GATHER)
    sent = [item["id"] for each in receiver.received for item in each.content["data"]["incidents"]]
    assert sent == ["i1", "i2"]


async def test_an_incident_whose_write_waits_for_an_election_is_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the server: another incident is recorded and sent while the write of this one waits."""
    none = timedelta()
    monkeypatch.setattr(notification_records, "MARGIN", none)
    monkeypatch.setattr(rules, "GATHER", none)
    monkeypatch.setattr(rules, "INTERVAL", none)
    operations = world.dependencies.operations
    records, held_up = NotificationRecords(operations), IncidentRecords(operations)
    await records.add(Rule("all", "webhook"))
    begun, elected, incidents = asyncio.Event(), asyncio.Event(), held_up._incidents

    class Waiting:
        find = incidents.find

        async def bulk_write(self, *arguments: Any, **options: Any) -> None:
            begun.set()
            await elected.wait()
            await incidents.bulk_write(*arguments, **options)

    def incident(name: str) -> Incident:
        return Incident(name, world.clock.now, "process-down", name, "service/payment", "payment")

    async def has_opened(*names: str) -> bool:
        await records.open_due()
        opened = await operations[NOTIFICATIONS].find({}).to_list(None)
        return sorted(each["_id"] for message in opened for each in message["incidents"]) == sorted(names)

    monkeypatch.setattr(held_up, "_incidents", Waiting())
    adding = asyncio.create_task(held_up.add([incident("held up")]))
    await begun.wait()
    await IncidentRecords(operations).add([incident("other")])
    await eventually(lambda: has_opened("other"), 60, "the message about the other incident")
    elected.set()
    await adding
    await eventually(lambda: has_opened("other", "held up"), 60, "the message about the one that waited")
    # A copy that a process makes once more keeps the first time, and so is not sent twice.
    before = await operations[INCIDENTS].find_one({"_id": "other"})
    await IncidentRecords(operations)._copy([incident("other").as_document()])
    assert await operations[INCIDENTS].find_one({"_id": "other"}) == before


# --- Attempts. ---


async def test_a_receiver_that_fails_is_tried_again_under_the_same_id_and_holds_up_no_other(
    world: World, receiver: Receiver
) -> None:
    receiver.behaviour["/hook"] = FAIL
    await world.records.add(Rule("broken", "webhook"))
    await world.records.add(Rule("works", "slack"))
    world.clock.now += SECOND
    await world.happen("i1")
    await world.pass_time(GATHER + MARGIN)
    broken, works = sorted(await world.messages(), key=lambda each: each["rule"])
    assert (broken["status"], broken["words"]) == (PENDING, "It answered 500 (Internal Server Error)")
    assert works["status"] == SENT
    receiver.behaviour["/hook"] = OK
    await world.pass_time(RETRIES[0])
    attempts = [each for each in receiver.received if each.path == "/hook"]
    assert len({each.id for each in attempts}) == 1
    assert [each["status"] for each in await world.messages()] == [SENT, SENT]


async def test_what_finally_failed_is_counted_and_shown(world: World, receiver: Receiver) -> None:
    receiver.behaviour["/hook"] = RESET
    await world.records.add(Rule("broken", "webhook"))
    world.clock.now += SECOND
    await world.happen("i1")
    await world.pass_time(GATHER + MARGIN)
    opened = world.clock.now
    for pause in RETRIES:
        assert [each["status"] for each in await world.messages()] == [PENDING]
        assert await world.records.count_failing(world.clock.now) == (world.clock.now - opened >= LATE)
        await world.pass_time(pause)
    assert [(each["status"], each["attempts"]) for each in await world.messages()] == [(FAILED, len(RETRIES) + 1)]
    async with pages_of(world.dependencies) as pages:
        page = (await pages.get("/notifications")).text
    assert "1 message could not be sent within the last day" in page
    assert "The connection ended without a valid HTTP answer" in page
    world.clock.now += RECENT + SECOND
    assert await world.records.count_failing(world.clock.now) == 0


async def test_the_message_of_a_process_that_died_is_sent_by_another_one(world: World, receiver: Receiver) -> None:
    await world.records.open_test(Rule("r", "webhook"))
    assert await world.records.claim() is not None
    await world.pass_time(LEASE - SECOND)
    assert receiver.received == []
    await world.pass_time(SECOND)
    assert [each.content["type"] for each in receiver.received] == ["incidents.test"]


async def test_who_has_lost_the_lease_records_nothing(world: World) -> None:
    await world.records.open_test(Rule("r", "webhook"))
    slow = await world.records.claim()
    world.clock.now += LEASE
    quick = await world.records.claim()
    assert slow is not None
    assert quick is not None
    await world.records.record(slow, Sent(False, "too late"))
    assert [(each["status"], each.get("words")) for each in await world.messages()] == [(PENDING, None)]
    await world.records.record(quick, Sent(True, "it took it"))
    assert [each["status"] for each in await world.messages()] == [SENT]


async def test_a_message_that_ends_each_process_is_given_up(world: World) -> None:
    await world.records.open_test(Rule("r", "webhook"))
    for _ in range(len(RETRIES) + 1):
        assert await world.records.claim() is not None
        world.clock.now += LEASE
    assert await world.records.claim() is None
    (only,) = await world.messages()
    assert (only["status"], "No attempt has ended" in only["words"]) == (FAILED, True)


async def test_an_unexpected_error_is_recorded_without_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: object) -> Sent:
        raise KeyError("secret-part")

    monkeypatch.setattr(world.channels, "send", fails)
    await world.records.open_test(Rule("r", "webhook"))
    await world.pass_time(SECOND)
    (only,) = await world.messages()
    words = "It could not be sent (KeyError). The log of the console has the details."
    assert (only["status"], only["words"]) == (FAILED, words)
    assert "secret-part" not in caplog.text


async def test_a_redirect_or_a_private_address_is_refused(world: World, receiver: Receiver) -> None:
    receiver.behaviour["/hook"] = REDIRECT
    await world.records.open_test(Rule("r", "webhook"))
    await world.pass_time(SECOND)
    careful = Channels(Destinations(f"{receiver.url}/hook", SECRET), Sender(allow_private=False, timeout=30))
    await world.records.open_test(Rule("r", "webhook"))
    await dispatch(Dispatcher(world.records, careful, None))
    await careful.close()
    found = await world.messages()
    assert {each["status"] for each in found} == {FAILED}
    assert any("redirects are not followed" in each["words"] for each in found)
    assert any("must be a public address" in each["words"] for each in found)


async def test_a_channel_that_is_not_set_up_says_what_to_set(world: World) -> None:
    await world.records.open_test(Rule("r", "email", ("ops@example.org",)))
    await world.pass_time(SECOND)
    (only,) = await world.messages()
    assert (only["status"], "ORDERSAGA_SMTP_HOST" in only["words"]) == (FAILED, True)


# --- E-mail. ---


@dataclass
class Mailbox:
    """What a mail server took, and what it refuses."""

    received: list[Mail] = field(default_factory=list)
    signed_in: list[str] = field(default_factory=list)
    refuses: bool = False
    addresses: dict[str, str] = field(default_factory=dict)
    """What it answers for an address that it does not take."""

    async def handle_RCPT(  # noqa: N802 - its name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.addresses:
            return self.addresses[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        if self.refuses:
            return "554 it looks like spam to ops@example.org"
        assert isinstance(envelope.content, bytes)
        self.received.append(message_from_bytes(envelope.content, policy=email_policy))
        return "250 OK"

    def authenticate(self, _s: SMTP, _session: Session, _e: Envelope, _mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.signed_in.append(data.login.decode())
        return AuthResult(success=data.password == b"right", handled=False)


@contextlib.asynccontextmanager
async def mail_server(mailbox: Mailbox, directory: Path, security: Security) -> AsyncIterator[MailServer]:
    """A real SMTP server, and how to reach it."""
    certificates = Certificates(directory)
    pair = certificates.issue("mail")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    starttls = security == "starttls"

    def connected() -> SMTP:
        return SMTP(
            mailbox,
            hostname="mail.example.org",
            tls_context=context if starttls else None,
            require_starttls=starttls,
            authenticator=mailbox.authenticate,
            auth_require_tls=starttls,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(connected, "127.0.0.1", 0, ssl=context if security == "tls" else None)
    port = server.sockets[0].getsockname()[1]
    trusted = ssl.create_default_context(cafile=str(certificates.ca))
    user, password = ("", "") if security == "off" else ("ordersaga", "right")
    try:
        yield MailServer("127.0.0.1", port, security, "ordersaga@example.org", user, password, trusted)
    finally:
        server.close()
        await server.wait_closed()


async def mailed(world: World, server: MailServer) -> Document:
    """What came of a message by e-mail."""
    channels = Channels(Destinations(mail=server), Sender(allow_private=False, timeout=30), world.clock)
    message_id = await world.records.open_test(Rule("night", "email", ("ops@example.org", "boss@example.org")))
    await dispatch(Dispatcher(world.records, channels, None))
    await channels.close()
    found = await world.records.message(message_id)
    assert found is not None
    return found


@pytest.mark.parametrize("security", ["starttls", "tls", "off"])
async def test_a_mail_server_takes_a_message(world: World, tmp_path: Path, security: Security) -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox, tmp_path, security) as server:
        sent = await mailed(world, server)
    assert (sent["status"], sent["words"]) == (SENT, "The mail server took it")
    (mail,) = mailbox.received
    assert mail["Subject"] == "ordersaga: test of the rule night"
    assert (mail["From"], mail["To"]) == ("ordersaga@example.org", "ops@example.org, boss@example.org")
    assert mail["Message-ID"] == f"<{sent['_id']}@ordersaga>"
    assert mailbox.signed_in == ([] if security == "off" else ["ordersaga"])


async def test_a_mail_server_that_refuses_is_told_apart_without_addresses(world: World, tmp_path: Path) -> None:
    mailbox = Mailbox(refuses=True)
    async with mail_server(mailbox, tmp_path, "starttls") as server:
        refused = await mailed(world, server)
        wrong = await mailed(world, replace(server, password="wrong"))
        not_ascii = await mailed(world, replace(server, password="pässword"))
        untrusted = await mailed(world, replace(server, tls=None))
    away = await mailed(world, server)
    assert refused["words"] == "The mail server refuses the message (554)"
    assert wrong["words"].startswith("The mail server refuses the user or the password")
    assert not_ascii["words"].startswith("ORDERSAGA_SMTP_HOST, _USERNAME or _PASSWORD has characters")
    assert untrusted["words"].startswith("The TLS handshake with the mail server failed")
    assert away["words"] == "The mail server refuses connections"


async def test_only_who_did_not_get_an_email_gets_it_again(world: World, tmp_path: Path) -> None:
    mailbox = Mailbox(addresses={"busy@example.org": "451 later", "gone@example.org": "550 no such user"})
    to = ("ops@example.org", "busy@example.org", "gone@example.org")
    await world.records.add(Rule("night", "email", to))
    world.clock.now += SECOND
    await world.happen("i1")
    async with mail_server(mailbox, tmp_path, "off") as server:
        world.channels = Channels(Destinations(mail=server), Sender(allow_private=False, timeout=30), world.clock)
        await world.pass_time(GATHER + MARGIN)
        (first,) = await world.messages()
        assert (first["status"], first["to"]) == (PENDING, list(to[1:]))
        assert first["words"] == "The mail server took it, but not for 2 of 3 addresses (451, 550)"
        del mailbox.addresses["busy@example.org"]
        await world.pass_time(RETRIES[0])
        await world.channels.close()
    (second,) = await world.messages()
    assert [mail["To"] for mail in mailbox.received] == [", ".join(to), ", ".join(to[1:])]
    # Nothing is gained by trying further: one address is wrong for good.
    assert (second["status"], second["to"]) == (FAILED, ["gone@example.org"])


@contextlib.asynccontextmanager
async def slow_server() -> AsyncIterator[MailServer]:
    """A mail server whose greeting never ends."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"220-x\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield MailServer("127.0.0.1", server.sockets[0].getsockname()[1], "off", "ordersaga@example.org")
    finally:
        server.close()


async def test_a_mail_server_that_never_ends_an_answer_is_cut_off(world: World) -> None:
    message = notification_records.message_of(
        {"_id": "m1", "rule": "r", "at": world.clock.now, "incidents": [], "counts": {}, "test": True}, None
    )
    with ThreadPoolExecutor(1) as threads:
        async with slow_server() as server:
            sent = await send_mail(server, message, ["ops@example.org"], threads, limit=0.2)
            # The thread is free again, although the server goes on.
            async with asyncio.timeout(60):
                await asyncio.get_running_loop().run_in_executor(threads, str)
    assert sent == Sent(False, "The mail server did not take it within 0.2 s")


async def test_a_mail_server_that_hangs_holds_up_no_other_channel(world: World, receiver: Receiver) -> None:
    await world.records.open_test(Rule("mail", "email", ("ops@example.org",)))
    async with slow_server() as server:
        destinations = Destinations(slack_url=receiver.url + SECRET_PATH, mail=server)
        channels = Channels(destinations, Sender(allow_private=True, timeout=30), world.clock)
        dispatcher = Dispatcher(world.records, channels, None)
        running = asyncio.create_task(dispatcher.run())

        async def status(rule: str, wanted: str) -> bool:
            found = {each["rule"]: each for each in await world.messages()}
            return found[rule]["status"] == wanted and bool(found[rule]["attempts"])

        await eventually(lambda: status("mail", PENDING), 60, "the e-mail to be tried")
        await world.records.open_test(Rule("slack", "slack"))
        await eventually(lambda: status("slack", SENT), 60, "the message to Slack")
        assert await status("mail", PENDING)
        await end_tasks(running)
        await channels.close()


# --- The page and the commands. ---


async def test_rules_are_kept_on_the_page_and_every_act_is_logged(world: World, receiver: Receiver) -> None:
    rule = {"name": "night", "channel": "slack", "severities": "critical", "why": "so that we wake up"}
    mail = {"name": "mail", "channel": "email", "to": "ops@example.org", "why": "daily work"}
    async with pages_of(world.dependencies) as pages:
        assert (await pages.post("/notifications", data=rule)).status_code == 303
        assert (await pages.post("/notifications", data=rule)).status_code == 409
        assert (await pages.post("/notifications", data=mail)).status_code == 303
        wrong = await pages.post("/notifications", data=rule | {"name": "x", "severities": "loud"})
        assert (wrong.status_code, "is not one of critical, warning, info" in wrong.text) == (422, True)
        assert (await pages.post("/notifications/night/test")).status_code == 303
        world.clock.now = utc_now() + SECOND  # the page stamps its test with the real time
        await dispatch(world.dispatcher())
        page = (await pages.get("/notifications")).text
        assert "It answered 204 (No Content)" in page
        assert "secret-part" not in page
        assert receiver.url not in page
        off = {"why": "holidays", "enabled": "false"}
        assert (await pages.post("/notifications/night/enabled", data=off)).status_code == 303
        assert (await pages.post("/notifications/night/remove", data={"why": "x"})).status_code == 303
        assert (await pages.post("/notifications/night/test")).status_code == 404
    (sent,) = receiver.received
    assert (sent.path, "test of the rule night" in sent.content["text"]) == (SECRET_PATH, True)
    entries = (await list_actions(world.dependencies.operations)).items
    assert "@" not in str([entry["outcome"] for entry in entries])  # the log keeps it for ever
    logged = [(entry["by"], entry["action"]) for entry in entries]
    acts = ("remove", "disable", "test", "add", "add")
    assert logged == [(BY_ADMIN, f"notifications.{act}") for act in acts]


async def test_rules_are_kept_by_commands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def permitted(*_: object) -> None:
        return None

    monkeypatch.setattr(command, "require_permission", permitted)
    for name, value in (
        ("MONGODB_URL", world.dependencies.mongodb_url),
        ("AMQP_URL", world.dependencies.amqp_url),
        ("DATABASE_PREFIX", world.dependencies.prefix),
    ):
        monkeypatch.setenv(f"ORDERSAGA_{name}", value)

    async def run(*words: str) -> tuple[int, str]:
        line = ["notifications", *words]
        result = await asyncio.to_thread(CliRunner().invoke, cli.build_application(line), line)
        return result.exit_code, result.stdout

    new = ("add", "night", "--channel", "webhook", "--severity", "critical", "--why", "so that we wake up")
    assert (await run(*new))[0] == 0
    assert (await run(*new))[0] == 1
    assert (await run("add", "x", "--channel", "pager", "--why", "x"))[0] == 2
    assert "night: severity critical → webhook" in (await run("list"))[1]

    async def keep_dispatching() -> None:
        while True:
            world.clock.now += SECOND
            await dispatch(world.dispatcher())
            await asyncio.sleep(0.05)

    # The command stamps its test with the real time.
    world.clock.now += timedelta(hours=1)
    dispatching = asyncio.create_task(keep_dispatching())
    assert await run("test", "night") == (0, "It answered 204 (No Content)\n")
    await end_tasks(dispatching)
    assert (await run("disable", "night", "--why", "planned work"))[0] == 0
    assert "night (off): severity critical" in (await run("list"))[1]
    assert (await run("enable", "night", "--why", "done"))[0] == 0
    assert (await run("enable", "x", "--why", "x"))[0] == 1
    assert (await run("remove", "night", "--why", "over"))[0] == 0
    assert (await run("remove", "night", "--why", "over"))[0] == 1
    assert (await run("test", "night"))[0] == 1
