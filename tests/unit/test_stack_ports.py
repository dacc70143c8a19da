"""Ports: taken ones are avoided or reported, and a stack never gets a port that another one has claimed."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.stack.ports import PortClaims, PortTakenError, is_free


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[PortClaims]:
    with PortClaims(tmp_path) as own:
        yield own


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_on_which_something_listens_is_not_free(taken: int) -> None:
    assert not is_free(taken)


def test_a_port_taken_on_every_address_is_not_free() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


def test_a_preferred_port_is_taken_when_it_is_free_and_another_when_not(claims: PortClaims, taken: int) -> None:
    free = claims.claim_free()
    claims.release()
    ports = claims.claim_preferred(["order", "payment"], {"order": free, "payment": taken})
    assert ports["order"] == free
    assert ports["payment"] not in (free, taken)


def test_the_first_of_several_preferences_wins(claims: PortClaims, taken: int) -> None:
    first, second = claims.claim_free(), claims.claim_free()
    claims.release()
    assert claims.claim_preferred(["order"], {"order": first}, {"order": second}) == {"order": first}
    claims.release()
    assert claims.claim_preferred(["order"], {"order": taken}, {"order": second}) == {"order": second}


def test_exact_ports_are_all_or_nothing_and_the_taken_ones_are_named(claims: PortClaims, taken: int) -> None:
    free = claims.claim_free()
    claims.release()
    with pytest.raises(PortTakenError, match=rf"{taken} \(payment\)"):
        claims.claim_exactly({"order": free, "payment": taken})
    assert claims.claim(free)


def test_a_port_that_another_stack_has_claimed_is_not_given_again(claims: PortClaims, tmp_path: Path) -> None:
    port = claims.claim_free()
    with PortClaims(tmp_path) as other:
        assert not other.claim(port)
        claims.release()
        assert other.claim(port)


def test_stacks_with_different_temporary_directories_see_each_others_claims(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with PortClaims() as claims:
        port = claims.claim_free()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with PortClaims() as other:
            assert not other.claim(port)


def test_a_port_is_reserved_until_the_stacks_own_process_on_it_has_ended(claims: PortClaims, tmp_path: Path) -> None:
    with PortClaims(tmp_path) as other:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            claims.reserve([port, port])
        assert not other.claim(port)
        assert claims.claim(port)
        assert not other.claim(port)
        claims.release()
        assert other.claim(port)


def test_what_is_reserved_is_released_without_a_claim(claims: PortClaims, tmp_path: Path) -> None:
    port = claims.claim_free()
    with PortClaims(tmp_path) as other:
        other.reserve([port])
        claims.release()
        claims.reserve([port])
        assert not other.claim(port)
        claims.release()
        assert other.claim(port)
