"""`ordersaga keys`, and services that read the file again."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from operations.stack.api_keys import KeyFileError, create_key, ensure_own_key, list_keys, revoke_key, rotate_key
from operations.stack.layout import Layout
from shared.access.key_file import KeyFile
from shared.access.permissions import Role
from shared.errors import StartError
from shared.services import ORDER
from shared.watched_files import CHECK_SECONDS
from tests.support.access import bearer
from tests.support.builders import order_body
from tests.support.commands import run_command
from tests.support.eventually import eventually
from tests.support.processes import run_stack

PATIENCE_SECONDS = 60.0
"""How long to wait for a process on a busy machine; the files are looked at every CHECK_SECONDS."""


def test_a_revoked_key_is_refused_within_five_seconds() -> None:
    assert CHECK_SECONDS < 5


async def keys(directory: Path, *words: str) -> tuple[int, str, str]:
    return await run_command("keys", *words, "--data-dir", str(directory), environment={})


async def test_a_key_is_printed_once_and_nothing_else(tmp_path: Path) -> None:
    status, key, errors = await keys(
        tmp_path, "create", "--role", "client", "--owner", "shop", "--name", "the web shop"
    )
    assert (status, errors) == (0, f"keys: {Layout(tmp_path).keys}\n")
    assert key.endswith("\n")

    status, listed, _ = await keys(tmp_path, "list", "--json")
    (found,) = json.loads(listed)["keys"]
    assert status == 0
    assert found["id"] == key[4:12]
    assert (found["role"], found["owner"], found["name"], found["invalid"]) == ("client", "shop", "the web shop", None)
    assert key.strip()[13:56] not in listed + Layout(tmp_path).keys.read_text()
    assert Layout(tmp_path).keys.stat().st_mode & 0o777 == 0o600


async def test_the_list_shows_who_uses_a_key_and_until_when(tmp_path: Path) -> None:
    await keys(tmp_path, "create", "--role", "customer", "--owner", "shop", "--subject", "u1", "--expires", "90d")
    status, listed, _ = await keys(tmp_path, "list")
    assert status == 0
    assert "customer" in listed
    assert "shop, u1" in listed
    assert "until 20" in listed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--role", "king", "--owner", "shop"), "'king' is not a role; allowed are customer, client"),
        (("--role", "client", "--owner", ""), "1 to 128 characters"),
        (("--role", "client", "--owner", "a\nb"), "control character"),
        (("--role", "client", "--owner", "x" * 129), "1 to 128 characters"),  # no message could carry the owner
        (("--role", "client", "--owner", "shop", "--expires", "soon"), "'soon' is not a duration"),
    ],
)
async def test_a_wrong_option_is_named_with_what_is_allowed(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    status, output, errors = await keys(tmp_path, "create", *words)
    assert (status, output) == (2, "")
    assert says in " ".join(errors.replace("│", " ").split())
    assert not Layout(tmp_path).keys.exists()


async def test_a_customer_needs_a_subject_and_nobody_else_has_one(tmp_path: Path) -> None:
    for words in (("--role", "customer"), ("--role", "client", "--subject", "u1")):
        status, _, errors = await keys(tmp_path, "create", *words, "--owner", "shop")
        assert status == 1
        assert "customer needs a subject" in errors


async def test_an_unknown_key_and_one_that_is_already_revoked_are_named(tmp_path: Path) -> None:
    status, _, errors = await keys(tmp_path, "revoke", "AAAAAAAA")
    assert status == 1
    assert "has no key 'AAAAAAAA'" in errors

    key = create_key(Layout(tmp_path).keys, Role.CLIENT, "shop", "shop")
    assert (await keys(tmp_path, "revoke", key[4:12]))[0] == 0
    status, _, errors = await keys(tmp_path, "rotate", key[4:12])
    assert (status, errors.splitlines()[1:]) == (1, [f"the key {key[4:12]} is already revoked"])


async def test_a_rotated_key_leaves_the_former_one_a_day(tmp_path: Path) -> None:
    file = Layout(tmp_path).keys
    former = create_key(file, Role.CLIENT, "shop", "the web shop")
    status, key, said = await keys(tmp_path, "rotate", former[4:12])
    assert status == 0
    assert key.strip() != former
    assert "valid until" in said

    old, new = list_keys(file)
    assert old.expires is not None
    assert 23.9 < (old.expires - new.created).total_seconds() / 3600 <= 24
    assert (new.role, new.owner, new.name, new.expires) == (Role.CLIENT, "shop", "the web shop", None)


def test_a_damaged_file_is_never_overwritten(tmp_path: Path) -> None:
    file = Layout(tmp_path).keys
    file.write_text("{")
    with pytest.raises(KeyFileError, match=r"keys\.json cannot be used"):
        create_key(file, Role.CLIENT, "shop", "shop")
    assert file.read_text() == "{"


def test_keys_created_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = Layout(tmp_path).keys
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: create_key(file, Role.CLIENT, f"shop {number}", "x"), range(40)))
    assert {key[4:12] for key in created} == {key.id for key in list_keys(file)}


def test_processes_that_create_keys_at_the_same_time_do_not_lose_any(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from operations.stack.api_keys import create_key; "
        "from shared.access.permissions import Role\n"
        "for n in range(10): create_key(pathlib.Path(sys.argv[1]), Role.CLIENT, 'shop', 'x')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(Layout(tmp_path).keys)]) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert len(list_keys(Layout(tmp_path).keys)) == 30


def test_the_keys_of_the_stack_itself_are_made_once_and_again_when_they_are_no_longer_valid(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    own = ensure_own_key(layout, "commands")
    assert ensure_own_key(layout, "commands") == own
    assert ensure_own_key(layout, "console") != own

    revoke_key(layout.keys, own[4:12])
    assert ensure_own_key(layout, "commands") != own


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda file: None, "No such file"),
        (lambda file: file.write_text("{"), "Invalid JSON"),
        (lambda file: (file.write_text('{"keys": []}'), file.chmod(0o622)), r"others may write to it \(mode 0622\)"),
    ],
)
def test_a_service_does_not_start_with_a_file_that_it_cannot_trust(tmp_path: Path, prepare: object, says: str) -> None:
    file = tmp_path / "keys.json"
    prepare(file)  # type: ignore[operator]
    with pytest.raises(StartError, match=says):
        KeyFile(file)


def test_a_file_that_is_damaged_later_leaves_the_former_keys_valid(tmp_path: Path) -> None:
    file = Layout(tmp_path).keys
    key = create_key(file, Role.CLIENT, "shop", "shop")
    opened = KeyFile(file, check_seconds=0)
    file.write_text("{")
    assert opened.find(key[4:12]) is not None

    file.unlink()
    other = create_key(file, Role.CLIENT, "other", "other")
    assert opened.find(key[4:12]) is None
    assert opened.find(other[4:12]) is not None


def test_a_new_key_is_known_at_once(tmp_path: Path) -> None:
    file = Layout(tmp_path).keys
    first = create_key(file, Role.CLIENT, "shop", "first")
    opened = KeyFile(file, check_seconds=3600)
    assert opened.find(first[4:12]) is not None
    second = create_key(file, Role.CLIENT, "shop", "second")
    assert opened.find(second[4:12]) is not None
    assert opened.find("unknown0") is None


async def test_running_services_notice_new_and_revoked_keys(
    tmp_path: Path, mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    file = Layout(tmp_path).keys
    create_key(file, Role.ADMIN, "shop", "first")
    async with (
        run_stack(mongodb_url, clean_broker, database_prefix, keys_file=file, auth_failure_limit="") as stack,
        httpx.AsyncClient() as client,
    ):
        (order,) = await stack.start(ORDER.name)
        key = create_key(file, Role.CLIENT, "shop", "later")

        async def status() -> int:
            return (await client.get(f"{order.url}/me", headers=bearer(key))).status_code

        async def accepted() -> bool:
            return await status() == 200

        async def refused() -> bool:
            return await status() == 401

        await eventually(accepted, PATIENCE_SECONDS, "the new key to be accepted")
        revoke_key(file, key[4:12])
        await eventually(refused, PATIENCE_SECONDS, "the revoked key to be refused")
        _, former = rotate_key(file, create_key(file, Role.CLIENT, "shop", "rotated")[4:12])
        assert former.expires is not None


async def test_a_stream_of_events_ends_with_the_key_that_opened_it(
    tmp_path: Path, mongodb_url: str, clean_broker: str, database_prefix: str
) -> None:
    file = Layout(tmp_path).keys
    key = create_key(file, Role.CLIENT, "shop", "shop")
    async with (
        run_stack(mongodb_url, clean_broker, database_prefix, keys_file=file) as stack,
        httpx.AsyncClient(headers=bearer(key), timeout=60) as client,
    ):
        (order,) = await stack.start(ORDER.name)  # alone, so that the order stays as it is
        placed = (await client.post(f"{order.url}/orders", json=order_body())).json()["orderId"]
        async with client.stream("GET", f"{order.url}/orders/{placed}/events") as events:
            lines = events.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == ["retry: 2000", "", "id: 1"]
            revoke_key(file, key[4:12])
            async with asyncio.timeout(30):
                async for _ in lines:
                    pass


async def test_who_calls_is_told(mongodb_url: str, clean_broker: str, database_prefix: str) -> None:
    async with run_stack(mongodb_url, clean_broker, database_prefix) as stack:
        (order,) = await stack.start(ORDER.name)
        me = (await stack.client.get(f"{order.url}/me")).json()
        assert (me["owner"], me["roles"], me["method"]) == ("tests", ["admin"], "key")
        assert me["permissions"]["orders:place"] == "all"

        refused = await stack.client.get(f"{order.url}/me", headers={"Authorization": ""})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert refused.headers["content-type"] == "application/problem+json"
