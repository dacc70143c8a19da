"""The client's reader of server-sent events, however the network cuts the stream into pieces."""

import pytest

from ordersaga_client import OrderEvent, UnreadableAnswerError
from ordersaga_client.event_stream import RECONNECT_SECONDS, Following

CREATED = b'id: 1\nevent: order.created\ndata: {"at": "2026-11-21T11:00:00.000Z", "status": "PENDING"}\n\n'
SETTLED = b"id: 2\nevent: settled\ndata: {}\n\n"


def events(following: Following, *pieces: bytes) -> list[OrderEvent]:
    return [event for piece in pieces for event in following.take(piece)]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_pieces_of_any_size_make_the_same_events(size: int, end: bytes) -> None:
    text = (b": hello\nretry: 250\n\n" + CREATED + SETTLED).replace(b"\n", end)
    following = Following()
    found = events(following, *(text[at : at + size] for at in range(0, len(text), size)))
    assert [(e.event_id, e.event, e.status) for e in found] == [
        ("1", "order.created", "PENDING"),
        ("2", "settled", None),
    ]
    assert following.ended


def test_a_character_may_be_cut_in_two() -> None:
    text = 'id: 1\nevent: e\ndata: {"message": "für Ünal"}\n\n'.encode()
    cut = text.index("Ü".encode()) + 1
    assert events(Following(), text[:cut], text[cut:])[0].message == "für Ünal"


def test_data_of_several_lines_is_one() -> None:
    assert events(Following(), b'id: 1\nevent: e\ndata: {"message":\ndata: "m"}\n\n')[0].message == "m"


def test_half_an_event_is_forgotten_when_the_stream_is_opened_again() -> None:
    following = Following()
    assert events(following, CREATED, SETTLED[:-1]) != []
    following.opened()
    assert [e.event_id for e in events(following, SETTLED)] == ["2"]


def test_an_event_without_an_id_does_not_move_the_place() -> None:
    following = Following("6")
    found = events(following, b"event: settled\ndata: {}\n\n")
    assert (found[0].event_id, following.last_id) == ("6", "6")


def test_the_pause_is_that_of_the_service_and_only_without_progress() -> None:
    following = Following()
    assert following.pause() == RECONNECT_SECONDS
    events(following, b"retry: 3000\n\n")
    assert following.pause() == 3
    events(following, CREATED)
    assert following.pause() == 0
    following.opened()
    assert following.pause() == 3


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b'{"at": "yesterday"}'])
def test_data_that_is_not_an_event_is_an_error(data: bytes) -> None:
    with pytest.raises(UnreadableAnswerError, match="cannot be read"):
        events(Following(), b"id: 1\nevent: e\ndata: " + data + b"\n\n")
