"""Secrets that are replaced while processes run: the keys of stored secrets, the provider's password, Stripe's key."""

import base64
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.fernet import Fernet
from structlog.testing import capture_logs

from notification_service.endpoint import Endpoint, Secret, with_new_secret
from notification_service.endpoints import Endpoints
from notification_service.reencryption import reencrypt as reencrypt_webhooks
from notification_service.signing_secrets import SecretVault
from payment_service.gateways.factory import open_gateway
from payment_service.gateways.port import Charged, ChargeRequest, GatewayMisconfiguredError
from payment_service.settings import PaymentSettings
from provisioning_service import jobs as job_records
from provisioning_service.__main__ import open_provider
from provisioning_service.credentials import UnreadableCredentialsError, Vault
from provisioning_service.provider import ProviderError
from provisioning_service.reencryption import reencrypt
from provisioning_service.settings import ProvisioningSettings
from shared.access.principal import EVERYTHING
from shared.clock import utc_now
from shared.database import Collection
from shared.live_settings import live_secret
from shared.reencryption import Reencryption
from shared.sealing import UnreadableSecretError
from shared.settings import load
from tests.support.builders import connected, new_id
from tests.support.commands import run_command
from tests.support.eventually import eventually
from tests.support.provisioning_workers import KEY as OLD
from tests.support.provisioning_workers import ProvisioningWorker, provisioning_worker, request
from tests.support.simulators import package, run_simulator
from tests.support.stripe_api import API_KEY, VISA, run_stripe_api

NEW = Fernet.generate_key().decode()
WITHIN = 60.0


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ORDERSAGA_") and not name.startswith("ORDERSAGA_TEST_"):
            monkeypatch.delenv(name)


# --- The key of the credentials, with real jobs. ---


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str) -> AsyncIterator[ProvisioningWorker]:
    async with run_simulator() as simulator:
        await simulator.packages([package("103.181.91", 9)])
        async with provisioning_worker(mongodb_url, database_prefix, simulator) as running:
            yield running


def jobs_of(worker: ProvisioningWorker) -> Collection:
    return worker.database[job_records.COLLECTION]


async def provision(worker: ProvisioningWorker, number: int) -> list[str]:
    """Provision servers; return the ids of their orders."""
    messages = [request() for _ in range(number)]
    await worker.take(*messages)
    await worker.settle()
    return [message.order_id for message in messages]


async def opened(worker: ProvisioningWorker, vault: Vault, order_ids: list[str]) -> list[str]:
    """The passwords of the orders' servers."""
    sealed = [(await worker.job(order_id)).credentials or b"" for order_id in order_ids]
    return [vault.open(order_id, one).password for order_id, one in zip(order_ids, sealed, strict=True)]


async def test_stored_credentials_are_encrypted_with_the_new_key_and_the_old_one_is_needed_no_more(
    worker: ProvisioningWorker,
) -> None:
    orders = await provision(worker, 3)
    before = await opened(worker, Vault(OLD), orders)
    waiting = request()
    await worker.take(waiting)  # has no credentials yet
    done = await reencrypt(jobs_of(worker), Vault(f"{NEW},{OLD}"))
    assert done == Reencryption(checked=3, changed=3)
    assert await opened(worker, Vault(NEW), orders) == before
    with pytest.raises(UnreadableCredentialsError):
        await opened(worker, Vault(OLD), orders)
    again = await reencrypt(jobs_of(worker), Vault(f"{NEW},{OLD}"))
    assert again == Reencryption(checked=3, changed=0)


async def test_a_rotation_that_was_interrupted_is_finished_by_the_next(worker: ProvisioningWorker) -> None:
    orders = await provision(worker, 3)

    def stop_after_two(done: Reencryption) -> None:
        if done.changed == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await reencrypt(jobs_of(worker), Vault(f"{NEW},{OLD}"), stop_after_two)
    assert len(await opened(worker, Vault(f"{NEW},{OLD}"), orders)) == 3
    done = await reencrypt(jobs_of(worker), Vault(f"{NEW},{OLD}"))
    assert done == Reencryption(checked=3, changed=1)
    assert len(await opened(worker, Vault(NEW), orders)) == 3


async def test_credentials_that_no_key_opens_are_named_and_left_alone(worker: ProvisioningWorker) -> None:
    (order_id,) = await provision(worker, 1)
    stored = (await worker.job(order_id)).credentials
    done = await reencrypt(jobs_of(worker), Vault(NEW))
    assert done == Reencryption(checked=1, unreadable=1, unreadable_ids=[order_id])
    assert (await worker.job(order_id)).credentials == stored


async def test_a_job_that_changes_meanwhile_is_not_overwritten(worker: ProvisioningWorker) -> None:
    (order_id,) = await provision(worker, 1)
    newer = Vault(NEW).seal(order_id, (await _access(worker, order_id)))
    collection = jobs_of(worker)

    class Slow:
        """Changes the record between the read and the write."""

        def find(self, *arguments: Any) -> Any:
            return collection.find(*arguments)

        async def update_one(self, *arguments: Any) -> Any:
            await collection.update_one({"_id": order_id}, {"$set": {"credentials": newer}})
            return await collection.update_one(*arguments)

    done = await reencrypt(Slow(), Vault(f"{NEW},{OLD}"))  # type: ignore[arg-type]
    assert done == Reencryption(checked=1, changed=0)
    assert (await worker.job(order_id)).credentials == newer


async def _access(worker: ProvisioningWorker, order_id: str) -> Any:
    job = await worker.job(order_id)
    return await worker.provider.access(job.ip or "")


async def test_the_command_rotates_with_the_keys_in_a_file(
    worker: ProvisioningWorker, mongodb_url: str, amqp_url: str, database_prefix: str, tmp_path: Path
) -> None:
    orders = await provision(worker, 2)
    keys = tmp_path / "keys"
    environment = {
        "ORDERSAGA_MONGODB_URL": mongodb_url,
        "ORDERSAGA_AMQP_URL": amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        "ORDERSAGA_CREDENTIALS_KEY_FILE": str(keys),
        "ORDERSAGA_DATA_DIR": str(tmp_path / "data"),
    }

    async def rotate(text: str) -> tuple[int, str, str]:
        keys.write_text(text)
        return await run_command("credentials", "rotate", "--json", environment=environment)

    status, output, errors = await rotate(f"{NEW},{OLD}\n")
    assert status == 0, errors
    assert json.loads(output) == {"checked": 2, "changed": 2, "unreadable": 0, "unreadableOrders": []}
    assert len(await opened(worker, Vault(NEW), orders)) == 2
    assert not any(key in output + errors for key in (NEW, OLD))

    status, output, errors = await rotate(OLD)
    assert status == 1
    assert json.loads(output)["unreadableOrders"] == sorted(orders)
    assert "keep all former keys" in errors

    status, _, errors = await rotate("no key")
    assert (status, "allowed are Fernet keys" in errors, "no key" in errors) == (3, True, False)
    keys.unlink()
    status, _, errors = await run_command("credentials", "rotate", environment=environment)
    assert (status, "cannot be read" in errors) == (3, True)


# --- The key of the secrets of webhooks. ---


async def register(endpoints: Endpoints, keys: str, endpoint_id: str, *expire_in: timedelta | None) -> Endpoint:
    """Insert an endpoint with a secret for each time, named like the endpoint and its place."""
    now, vault = utc_now(), SecretVault(keys)
    endpoint = Endpoint(
        id=endpoint_id,
        url="https://shop.example/",
        events=("*",),
        secrets=tuple(
            Secret(vault.seal(endpoint_id, f"{endpoint_id}-{place}"), now, None if ends is None else now + ends)
            for place, ends in enumerate(expire_in)
        ),
        created_at=now,
        updated_at=now,
    )
    await endpoints.insert(endpoint)
    return endpoint


@pytest.fixture
async def endpoints(mongodb_url: str, database_prefix: str) -> AsyncIterator[Endpoints]:
    async with connected(mongodb_url, f"{database_prefix}_notifications") as database:
        yield Endpoints(database)


async def signing(endpoints: Endpoints, endpoint_id: str, keys: str) -> list[str]:
    """The secrets with which deliveries are signed, decrypted with some keys."""
    found = await endpoints.find(endpoint_id, EVERYTHING)
    assert found is not None
    return SecretVault(keys).open(endpoint_id, found.signing_secrets(utc_now()))


def stored(endpoints: Endpoints) -> Collection:
    return endpoints._collection


DAY, PAST = timedelta(days=1), timedelta(hours=-1)


async def test_secrets_of_webhooks_are_encrypted_with_the_new_key_and_the_old_one_is_needed_no_more(
    endpoints: Endpoints,
) -> None:
    await register(endpoints, OLD, "wh_1", None, DAY, PAST)
    await register(endpoints, OLD, "wh_2", None)
    both = SecretVault(f"{NEW},{OLD}")
    assert await reencrypt_webhooks(stored(endpoints), both, utc_now()) == Reencryption(checked=3, changed=3)
    assert await signing(endpoints, "wh_1", NEW) == ["wh_1-0", "wh_1-1"]
    assert await signing(endpoints, "wh_2", NEW) == ["wh_2-0"]
    with pytest.raises(UnreadableSecretError):
        await signing(endpoints, "wh_2", OLD)
    assert await reencrypt_webhooks(stored(endpoints), both, utc_now()) == Reencryption(checked=3, changed=0)


async def test_a_rotation_of_webhooks_that_was_interrupted_is_finished_by_the_next(endpoints: Endpoints) -> None:
    await register(endpoints, OLD, "wh_1", None, DAY)
    await register(endpoints, OLD, "wh_2", None)
    both = SecretVault(f"{NEW},{OLD}")

    def stop_after_one(_done: Reencryption) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await reencrypt_webhooks(stored(endpoints), both, utc_now(), stop_after_one)
    assert await signing(endpoints, "wh_1", f"{NEW},{OLD}") == ["wh_1-0", "wh_1-1"], "each with its own key"
    assert await reencrypt_webhooks(stored(endpoints), both, utc_now()) == Reencryption(checked=3, changed=2)
    assert await signing(endpoints, "wh_1", NEW) == ["wh_1-0", "wh_1-1"]


async def test_a_secret_of_a_webhook_that_no_key_opens_is_named_and_left_alone(endpoints: Endpoints) -> None:
    await register(endpoints, OLD, "wh_1", None, DAY)
    await register(endpoints, NEW, "wh_2", None)
    before = await endpoints.find("wh_1", EVERYTHING)
    done = await reencrypt_webhooks(stored(endpoints), SecretVault(NEW), utc_now())
    assert done == Reencryption(checked=3, unreadable=2, unreadable_ids=["wh_1"])
    assert await endpoints.find("wh_1", EVERYTHING) == before


async def test_a_new_secret_and_the_new_key_do_not_undo_one_another(endpoints: Endpoints) -> None:
    before = await register(endpoints, OLD, "wh_1", None, DAY)
    both, now = SecretVault(f"{NEW},{OLD}"), utc_now()

    async def replace_secrets(before: Endpoint, name: str) -> Endpoint | None:
        secrets = with_new_secret(before.secrets, both.seal("wh_1", name), now)
        assert secrets is not None
        return await endpoints.replace_secrets(before, secrets, EVERYTHING, now)

    await stored(endpoints).update_one(
        {"_id": "wh_1"}, {"$set": {"secrets.1.sealed": both.reseal("wh_1", before.secrets[1].sealed)}}
    )
    assert await replace_secrets(before, "late") is None, "it would bring a secret of the old key back"
    after_read: list[Endpoint | None] = []

    class Slow:
        """Adds a secret between the read and the write."""

        def find(self, *arguments: Any) -> Any:
            return stored(endpoints).find(*arguments)

        async def update_one(self, *arguments: Any) -> Any:
            now_stored = await endpoints.find("wh_1", EVERYTHING)
            assert now_stored is not None
            after_read.append(await replace_secrets(now_stored, "new"))
            return await stored(endpoints).update_one(*arguments)

    done = await reencrypt_webhooks(Slow(), both, utc_now())  # type: ignore[arg-type]
    assert done == Reencryption(checked=2, changed=1)
    assert after_read != [None]
    assert await signing(endpoints, "wh_1", NEW) == ["new", "wh_1-0", "wh_1-1"]


async def test_the_command_rotates_the_secrets_of_webhooks(
    endpoints: Endpoints, mongodb_url: str, amqp_url: str, database_prefix: str, tmp_path: Path
) -> None:
    await register(endpoints, OLD, "wh_1", None, DAY)
    file = tmp_path / "keys"
    environment = {
        "ORDERSAGA_MONGODB_URL": mongodb_url,
        "ORDERSAGA_AMQP_URL": amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
        "ORDERSAGA_WEBHOOK_KEY_FILE": str(file),
        "ORDERSAGA_DATA_DIR": str(tmp_path / "data"),
    }

    async def rotate(keys: str, *words: str) -> tuple[int, str, str]:
        file.write_text(f"{keys}\n")
        command = ("credentials", "rotate", "webhooks", *words)
        return await run_command(*command, environment=environment)

    status, output, errors = await rotate(f"{NEW},{OLD}", "--json")
    assert status == 0, errors
    assert json.loads(output) == {"checked": 2, "changed": 2, "unreadable": 0, "unreadableWebhooks": []}
    assert await signing(endpoints, "wh_1", NEW) == ["wh_1-0", "wh_1-1"]
    status, output, errors = await rotate(f"{NEW},{OLD}")
    assert output.strip() == (
        "2 stored secrets of webhooks: 0 encrypted with the first key now, 2 before, 0 unreadable"
    )
    status, output, errors = await rotate(OLD, "--json")
    assert (status, json.loads(output)["unreadableWebhooks"]) == (1, ["wh_1"])
    assert "no key opens the secrets of webhooks of wh_1: keep all former keys" in errors
    assert not any(key in output + errors for key in (NEW, OLD))
    status, _, errors = await rotate("no key")
    assert (status, "ORDERSAGA_WEBHOOK_KEY is not valid: allowed are Fernet keys" in errors) == (3, True)


def test_a_process_that_does_not_know_the_new_key_yet_reads_it_when_it_meets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(OLD)
    monkeypatch.setenv("ORDERSAGA_CREDENTIALS_KEY_FILE", str(keys))

    secret = live_secret(load(ProvisioningSettings), "credentials_key")
    assert secret is not None
    vault = Vault(secret)
    from provisioning_service.provider import Access

    access = Access("103.1.1.1", "root", "s3cret", "linux", None)
    keys.write_text(f"{NEW},{OLD}")
    sealed = Vault(f"{NEW},{OLD}").seal("o1", access)
    assert vault.open("o1", sealed).password == "s3cret"
    Vault(NEW).open("o2", vault.seal("o2", access))  # now it encrypts with the new key, too


# --- A value that is wrong after a change. ---


def test_an_invalid_new_value_leaves_the_former_one_in_use_and_is_logged_once_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "stripe"
    file.write_text("sk_first")
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", str(file))
    secret = live_secret(load(PaymentSettings), "stripe_api_key")
    assert secret is not None
    file.write_text("s3cret of another kind")
    structlog.reset_defaults()
    with capture_logs() as logged:
        for _ in range(4):
            assert secret.refresh() == "sk_first"
    assert [entry["log_level"] for entry in logged] == ["error"]
    assert f"ORDERSAGA_STRIPE_API_KEY_FILE={file} has a value that is not valid" in logged[0]["why"]
    assert "s3cret" not in str(logged)
    file.write_text("sk_second\n")
    assert secret.refresh() == "sk_second"


def test_a_value_of_the_environment_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY", "sk_first")
    secret = live_secret(load(PaymentSettings), "stripe_api_key")
    assert secret is not None
    assert (secret.current(), secret.refresh()) == ("sk_first", "sk_first")


# --- Stripe. ---


async def test_stripes_key_is_replaced_without_a_stop(
    monkeypatch: pytest.MonkeyPatch, mongodb_url: str, database_prefix: str, tmp_path: Path
) -> None:
    file = tmp_path / "stripe"
    file.write_text(f"{API_KEY}\n")
    monkeypatch.setenv("ORDERSAGA_STRIPE_API_KEY_FILE", str(file))
    monkeypatch.setenv("ORDERSAGA_CARD_GATEWAY", "stripe")
    async with run_stripe_api() as api, connected(mongodb_url, f"{database_prefix}_payments") as database:
        monkeypatch.setenv("ORDERSAGA_STRIPE_API_URL", api.url)
        gateway = open_gateway(load(PaymentSettings), database, utc_now)

        def charge() -> ChargeRequest:
            return ChargeRequest(new_id(), 1999, "USD", VISA, utc_now())

        assert isinstance(await gateway.charge(charge()), Charged)
        api.api_key = "sk_test_next"
        with pytest.raises(GatewayMisconfiguredError):
            await gateway.charge(charge())
        file.write_text("sk_test_next\n")

        async def charged() -> bool:
            return isinstance(await gateway.charge(charge()), Charged)

        await eventually(charged, WITHIN, "the new key")
        await gateway.drain()


# --- SmartVPS. ---


@dataclass
class Reseller:
    """A provider's server that accepts one password."""

    password: str
    port: int = 0


@pytest.fixture
def reseller() -> Iterator[Reseller]:
    shop = Reseller("first")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            wanted = base64.b64encode(f"user:{shop.password}".encode()).decode()
            allowed = self.headers["Authorization"] == f"Basic {wanted}"
            body = b"[]"
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        shop.port = server.server_port
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield shop
        server.shutdown()
        serving.join()


async def test_the_providers_password_is_replaced_without_a_stop(
    monkeypatch: pytest.MonkeyPatch, reseller: Reseller, tmp_path: Path
) -> None:
    file, keys = tmp_path / "password", tmp_path / "keys"
    file.write_text("first\n")
    keys.write_text(OLD)
    for name, value in {
        "SMARTVPS_URL": f"http://127.0.0.1:{reseller.port}",
        "SMARTVPS_USERNAME": "user",
        "SMARTVPS_PASSWORD_FILE": str(file),
        "CREDENTIALS_KEY_FILE": str(keys),
    }.items():
        monkeypatch.setenv(f"ORDERSAGA_{name}", value)
    provider = open_provider(load(ProvisioningSettings))
    assert provider is not None
    assert await provider.packages() == []
    reseller.password = "second"
    with pytest.raises(ProviderError, match="401"):
        await provider.packages()
    file.write_text("second\n")

    async def answers() -> bool:
        return await provider.packages() == []

    await eventually(answers, WITHIN, "the new password")
    await provider.close()
