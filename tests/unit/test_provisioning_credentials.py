"""Credentials at rest: only a key decrypts them, and only for their order."""

import base64
import traceback

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service.credentials import Credentials, UnreadableCredentialsError, Vault
from provisioning_service.provider import Access

OLD, NEW, LOST = (Fernet.generate_key().decode() for _ in range(3))
ACCESS = Access("103.181.91.1", "root", "s3cret-Pa55")


def test_encrypted_credentials_are_decrypted_for_their_order() -> None:
    sealed = Vault(OLD).seal("o1", ACCESS)
    assert Vault(OLD).open("o1", sealed) == Credentials("103.181.91.1", "root", "s3cret-Pa55")


@given(st.text(), st.text())
def test_any_username_and_password_are_decrypted_unchanged(username: str, password: str) -> None:
    vault = Vault(OLD)
    found = vault.open("o1", vault.seal("o1", Access("103.181.91.1", username, password)))
    assert (found.username, found.password) == (username, password)


def test_nothing_can_be_read_without_the_key() -> None:
    vault = Vault(OLD)
    access = Access(
        "103.181.91.1", "administrator", "s3cret-Pa55"
    )  # long enough not to appear in the ciphertext by chance
    sealed = vault.seal("order-4711", access)
    raw = base64.urlsafe_b64decode(sealed)
    assert not any(
        part.encode() in sealed + raw for part in (access.password, access.username, access.ip, "order-4711")
    )
    assert sealed != vault.seal("order-4711", access), "equal passwords have different ciphertexts"


def test_a_new_key_in_front_encrypts_and_the_old_one_still_decrypts() -> None:
    before = Vault(OLD).seal("o1", ACCESS)
    rotated = Vault(f"{NEW},{OLD}")
    assert rotated.open("o1", before).password == ACCESS.password
    after = rotated.seal("o1", ACCESS)
    assert Vault(NEW).open("o1", after).password == ACCESS.password
    with pytest.raises(UnreadableCredentialsError):
        Vault(OLD).open("o1", after)


def opening_fails(vault: Vault, order_id: str, sealed: bytes) -> str:
    """Return the whole error as a log would show it."""
    with pytest.raises(UnreadableCredentialsError) as raised:
        vault.open(order_id, sealed)
    return "".join(traceback.format_exception(raised.value))


def test_a_missing_key_is_reported_with_the_order() -> None:
    shown = opening_fails(Vault(LOST), "o1", Vault(OLD).seal("o1", ACCESS))
    assert "no key opens the credentials of order o1" in shown
    assert LOST not in shown


@pytest.mark.parametrize("sealed", [b"", b"plain text", b"gAAAAA"])
def test_bytes_that_were_never_encrypted_are_refused(sealed: bytes) -> None:
    opening_fails(Vault(OLD), "o1", sealed)


def test_changed_bytes_are_refused() -> None:
    raw = bytearray(base64.urlsafe_b64decode(Vault(OLD).seal("o1", ACCESS)))
    raw[len(raw) // 2] ^= 1
    opening_fails(Vault(OLD), "o1", base64.urlsafe_b64encode(raw))


def test_the_credentials_of_one_order_are_not_shown_for_another() -> None:
    shown = opening_fails(Vault(OLD), "o2", Vault(OLD).seal("o1", ACCESS))
    assert "another order's" in shown
    assert ACCESS.password not in shown


def test_printed_credentials_contain_no_secret() -> None:
    opened = Vault(OLD).open("o1", Vault(OLD).seal("o1", ACCESS))
    for printed in (repr(opened), str(opened), f"{opened}", repr([opened]), repr(ACCESS)):
        assert ACCESS.password not in printed
        assert ACCESS.username not in printed


@pytest.mark.parametrize(
    "keys",
    ["", "short", f"{OLD},", f"{OLD},short"],
    ids=["nothing", "short", "an empty one beside", "a short one beside"],
)
def test_an_invalid_key_is_refused(keys: str) -> None:
    with pytest.raises(ValueError, match="Fernet key"):
        Vault(keys)
