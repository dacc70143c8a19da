"""Who calls and what that caller may do: keys, roles, principals, and the header with which the console acts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from shared.access.authenticator import Authenticator
from shared.access.errors import AuthenticationError
from shared.access.key_file import format_keys, parse_keys
from shared.access.keys import KEY_PATTERN, KeyRecord, new_key, split_key
from shared.access.permissions import ROLES, STAFF, Permission, Reach, Role, grants_of, smaller_of
from shared.access.principal import Principal, anonymous
from tests.support.access import RING, KeyRing, bearer

roles = st.frozensets(st.sampled_from(list(Role)), min_size=1)
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def a_principal(role: Role, owner: str | None = "shop", subject: str | None = None) -> Principal:
    return Principal("key:1", "one", owner, subject, frozenset({role}), "key", grants_of(frozenset({role})))


# --- Keys. ---


def test_a_key_has_the_form_that_scanners_look_for() -> None:
    key, key_id, _ = new_key()
    assert KEY_PATTERN.fullmatch(key)
    assert split_key(key) == (key_id, key[13:56])
    assert new_key()[0] != key


@given(place=st.integers(0, 62), character=st.characters(codec="ascii", categories=("L", "N")))
def test_one_wrong_character_is_noticed_without_looking_anything_up(place: int, character: str) -> None:
    key, _, _ = new_key()
    changed = key[:place] + character + key[place + 1 :]
    assert changed == key or split_key(changed) is None


@given(text=st.text(max_size=80))
def test_any_other_text_is_no_key(text: str) -> None:
    assert split_key(text) is None


def test_the_file_has_no_secret_and_is_read_as_it_was_written() -> None:
    ring = KeyRing()
    keys = [ring.add(Role.CLIENT, "shop"), ring.add(Role.CUSTOMER, "shop", "u1", expires=NOW)]
    content = format_keys(ring.records.values())

    assert parse_keys(content) == list(ring.records.values())
    for key in keys:
        assert key.encode() not in content
        assert key[13:56].encode() not in content


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"keys": [{"id": "x", "sha256": "secret-value"}]}', b'{"keys": [{"role": "secret-value"}]}'],
)
def test_a_damaged_file_is_described_without_its_content(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+") as raised:
        parse_keys(content)
    assert "secret-value" not in str(raised.value)


# --- Roles. ---


def test_every_permission_is_granted_to_somebody_and_the_admin_has_all() -> None:
    assert ROLES.keys() == set(Role)
    assert ROLES[Role.ADMIN] == dict.fromkeys(Permission, Reach.ALL)
    assert all(Permission.SELF_READ in granted for granted in ROLES.values())


@pytest.mark.parametrize("role", [Role.CUSTOMER, Role.CLIENT])
def test_those_who_buy_reach_the_records_of_others_in_nothing_but_the_catalogue(role: Role) -> None:
    reaching_all = {permission for permission, reach in ROLES[role].items() if reach is Reach.ALL}
    assert reaching_all == {Permission.SELF_READ, Permission.CATALOGUE_READ}


@pytest.mark.parametrize("role", sorted(STAFF))
def test_staff_reach_the_records_of_every_owner(role: Role) -> None:
    assert set(ROLES[role].values()) == {Reach.ALL}


@given(one=roles, other=roles)
def test_more_roles_never_grant_less_and_the_smaller_of_two_grants_no_more_than_either(
    one: frozenset[Role], other: frozenset[Role]
) -> None:
    both, smaller = grants_of(one | other), smaller_of(grants_of(one), grants_of(other))
    for granted in (grants_of(one), grants_of(other)):
        assert all(both[permission] >= reach for permission, reach in granted.items())
        assert all(granted[permission] >= reach for permission, reach in smaller.items())


# --- Principals. ---


def test_a_query_keeps_to_the_records_that_the_permission_reaches() -> None:
    read = Permission.ORDERS_READ
    assert a_principal(Role.VIEWER).visible(read) == {}
    assert a_principal(Role.CLIENT).visible(read) == {"ownerId": "shop"}
    assert a_principal(Role.CUSTOMER, subject="u1").visible(read) == {"ownerId": "shop", "userId": "u1"}
    assert a_principal(Role.CUSTOMER, subject="u1").visible(read, person="clientId") == {
        "ownerId": "shop",
        "clientId": "u1",
    }
    with pytest.raises(PermissionError):
        a_principal(Role.ACCOUNTANT).visible(Permission.ORDERS_PLACE)


def test_a_caller_without_owner_or_subject_does_not_reach_records_that_have_none() -> None:
    query = a_principal(Role.CUSTOMER, owner=None).visible(Permission.ORDERS_READ)
    assert query == {"ownerId": "", "userId": ""}
    assert anonymous().visible(Permission.ORDERS_READ) == {}


# --- Authentication. ---


async def test_a_valid_key_is_a_principal_with_the_rights_of_its_role() -> None:
    ring = KeyRing()
    caller = await Authenticator(ring).authenticate(headers(bearer(ring.add(Role.CLIENT, "shop"))))
    assert (caller.owner, caller.method, caller.roles) == ("shop", "key", frozenset({Role.CLIENT}))
    assert caller.may(Permission.ORDERS_PLACE)
    assert not caller.may(Permission.CATALOGUE_WRITE)


def expired() -> str:
    return RING.add(Role.ADMIN, expires=datetime.now(UTC) - timedelta(seconds=1))


def unknown() -> str:
    return new_key()[0]


@pytest.mark.parametrize(
    ("given_headers", "says"),
    [
        ({}, "needs the header Authorization"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "must be Bearer"),
        ({"authorization": "Bearer"}, "must be Bearer"),
        ({"authorization": "Bearer "}, "must be Bearer"),
        ({"authorization": "Bearer osk_short"}, "not complete, or has a wrong character"),
        ({"authorization": f"Bearer {'x' * 20_000}"}, "too long"),
        ({"authorization": f"Bearer {unknown()}"}, "is not valid"),
        ({"authorization": f"Bearer {expired()}"}, "is expired"),
        ({"authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}, "no API key"),
    ],
)
async def test_anything_else_is_refused_with_the_reason(given_headers: dict[str, str], says: str) -> None:
    with pytest.raises(AuthenticationError, match=says) as raised:
        await Authenticator(RING).authenticate(headers(given_headers))
    credential = given_headers.get("authorization", "").partition(" ")[2]
    assert len(credential) < 20 or credential not in str(raised.value)


async def test_a_known_id_with_another_secret_is_refused() -> None:
    ring = KeyRing()
    key = ring.add(Role.ADMIN)
    record = ring.records[key[4:12]]
    ring.records[record.id] = KeyRecord(**{**fields(record), "sha256": "0" * 64})
    with pytest.raises(AuthenticationError, match="is not valid"):
        await Authenticator(ring).authenticate(headers(bearer(key)))


async def test_without_authentication_everybody_may_do_everything() -> None:
    caller = await Authenticator(None).authenticate(Headers({}))
    assert caller.grants == ROLES[Role.ADMIN]
    assert caller.owner is None


async def test_who_acts_for_a_person_has_the_smaller_rights_of_both_and_is_recorded() -> None:
    ring = KeyRing()
    admin, viewer = ring.add(Role.ADMIN), ring.add(Role.VIEWER)
    authenticator = Authenticator(ring)
    acts_for = {"ordersaga-acts-for": "anna@shop.example;operator,viewer"}

    caller = await authenticator.authenticate(headers(bearer(admin) | acts_for))
    assert (caller.id, caller.via) == ("anna@shop.example", f"key:{admin[4:12]}")
    assert caller.grants == grants_of(frozenset({Role.OPERATOR, Role.VIEWER}))

    caller = await authenticator.authenticate(headers(bearer(viewer) | acts_for))
    assert not caller.may(Permission.ORDERS_CANCEL)


@pytest.mark.parametrize("header", ["", "anna", ";admin", "anna;", "anna;king", f"{'a' * 201};admin"])
async def test_an_unclear_person_is_refused(header: str) -> None:
    ring = KeyRing()
    with pytest.raises(AuthenticationError, match="ordersaga-acts-for"):
        await Authenticator(ring).authenticate(headers(bearer(ring.add(Role.ADMIN)) | {"ordersaga-acts-for": header}))


def headers(given_headers: dict[str, str]) -> Headers:
    return Headers(given_headers)


def fields(record: KeyRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
