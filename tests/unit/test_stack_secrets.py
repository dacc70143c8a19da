"""The random passwords of a stack."""

from pathlib import Path

import pytest

from operations.stack.secret_files import load_or_create_secret
from operations.stack.start import StackStartError


def test_a_secret_is_created_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    secret = load_or_create_secret(directory, "mongodb-order")

    assert load_or_create_secret(directory, "mongodb-order") == secret
    assert load_or_create_secret(directory, "mongodb-payment") != secret
    assert len(secret) == 43
    assert (directory / "mongodb-order").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_damaged_secret_is_not_replaced_because_the_server_still_expects_the_original(tmp_path: Path) -> None:
    (tmp_path / "mongodb-order").write_text("two words\n")

    with pytest.raises(StackStartError, match="restore the original"):
        load_or_create_secret(tmp_path, "mongodb-order")
    assert (tmp_path / "mongodb-order").read_text() == "two words\n"
