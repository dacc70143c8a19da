"""URLs of servers: which ones are settings, and that no password in one is ever shown."""

from typing import Annotated

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ValidationError

from shared import urls
from shared.urls import hide_credentials, hide_credentials_in_value

SECRET = "S3CR3T"  # no other part of a generated text contains it
ANY_TEXT = st.text().filter(lambda text: SECRET not in text)
HOST = st.from_regex(r"[a-z.0-9-]{1,20}(:[0-9]{1,5})?", fullmatch=True)


class Urls(BaseModel):
    mongodb: Annotated[str, AfterValidator(urls.check_mongodb_url)] = "mongodb://h"
    amqp: Annotated[str, AfterValidator(urls.check_amqp_url)] = "amqp://h"
    service: Annotated[str, AfterValidator(urls.check_service_url)] = "http://h"
    api: Annotated[str, AfterValidator(urls.check_origin)] = "http://h"


@given(before=ANY_TEXT, user=ANY_TEXT, start=ANY_TEXT, end=ANY_TEXT, host=HOST, after=ANY_TEXT)
@example("", "u", "Se#cret", "", "h", "/")
@example("", "user", "Se/", "4", "h", "")
@example("cannot reach ", "u", "a@b://c", "\n", "h", " now")
def test_no_password_is_shown_with_any_characters_in_or_around_it(
    before: str, user: str, start: str, end: str, host: str, after: str
) -> None:
    # A user's name ends at the first colon: text before it cannot be distinguished from a name.
    text = f"{before}amqp://{user.replace(':', '')}:{start}{SECRET}{end}@{host}{after}"
    assert SECRET not in hide_credentials(text)
    assert SECRET not in hide_credentials_in_value(text)


@given(
    # After an @ it could not be distinguished from a host, nor a number from a port.
    start=ANY_TEXT.filter(lambda text: "@" not in text and not text[:1].isdigit()),
    end=ANY_TEXT.filter(lambda text: "@" not in text),
    lead=st.sampled_from(["amqp:/u:", "u:", "amqp:u:", "amqp//u:", "amqp:///u:", "mongodb+srv://u:"]),
    tail=st.sampled_from(["", "@", "@h", "@h:5672/"]),
)
def test_nothing_of_a_value_that_is_hardly_a_url_is_shown(start: str, end: str, lead: str, tail: str) -> None:
    assert SECRET not in hide_credentials_in_value(f"{lead}{start}{SECRET}{end}{tail}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@127.0.0.1:5672/", "amqp://guest:***@127.0.0.1:5672/"),
        ("amqp://shop:secret@broker:5672/x", "amqp://shop:***@broker:5672/x"),
        ("mongodb://a:b@one:1,two:2/?replicaSet=rs0", "mongodb://a:***@one:1,two:2/?replicaSet=rs0"),
        ("https://token@api.example/v1", "https://***@api.example/v1"),
        ("http://127.0.0.1:3008", "http://127.0.0.1:3008"),
        (
            "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=x%20y&w=1",
            "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=***&w=1",
        ),
        ("amqp://a:b@one:1/v,amqps://a:b,c@two/v", "amqp://a:***@one:1/v,amqps://a:***@two/v"),
        ("amqp://a:12,amqp://b@two/", "amqp://a:***@two/"),
        ("no answer from http://h:1. Write to a@b", "no answer from http://h:***@b"),
        ("write to a@b", "write to a@b"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert hide_credentials(url) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("localhost:27017", "localhost:27017"),
        ("http://localhost", "http://localhost"),
        ("http://[::1]:80/", "http://***"),
        ("amqp://u:secret", "amqp://***"),
        ("u:secret@h", "***"),
        ("amq://guest:secret@broker/", "amq://guest:***@broker/"),
    ],
)
def test_what_is_shown_of_a_value_that_should_be_a_url(value: str, shown: str) -> None:
    assert hide_credentials_in_value(value) == shown


@pytest.mark.parametrize(
    "value",
    [
        {"mongodb": "mongodb://127.0.0.1:27017/?replicaSet=rs0&w=majority"},
        {"mongodb": "mongodb+srv://user:p%40ss@cluster0.example.net/orders?retryWrites=true"},
        {"mongodb": "mongodb://one:1,two:2,[::1]:3/?tlsCAFile=/etc/ca.pem"},
        {"mongodb": "mongodb://%2Ftmp%2Fmongodb-27017.sock/"},
        {"amqp": "amqp://guest:guest@127.0.0.1:5672/"},
        {"amqp": "amqps://u:p!$&'()*+,;=~%23@my_broker/%2Fshop?heartbeat=10"},
        {"amqp": "amqp://[::1]:5672"},
        {"amqp": "amqp://u:p,w@one:5672/v,amqp://u:p,w@two/v"},
        {"amqp": "amqp://one/,amqp://two"},
        {"service": "http://user:pass@order:3008/"},
        {"api": "https://api.stripe.com"},
    ],
)
def test_a_valid_url_is_not_changed(value: dict[str, str]) -> None:
    assert Urls(**value).model_dump(include=set(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        {"amqp": "amqp://u:Se#cret@h/"},
        {"amqp": "amqp://u:Se/cret@h/"},
        {"amqp": "amqp://u:Se@cret@h/"},
        {"amqp": "amqp://u:Se:cret@h/"},
        {"amqp": "amqp://u:Se cret@h/"},
        {"amqp": "amqp://u:Se%cret@h/"},
        {"amqp": "amqp://h:70000/"},
        {"amqp": "amqp://h:0/"},
        {"amqp": "amqp://h:port/"},
        {"amqp": "amqp://"},
        {"amqp": "amqp://h/\n"},
        {"amqp": "amqp://h/,amqp://"},
        {"amqp": "amqp://h/, amqp://i/"},
        {"amqp": "http://h/"},
        {"mongodb": "mongodb://u:Se?cret@h/"},
        {"mongodb": "mongodb://h:27017,h:x/"},
        {"mongodb": "localhost:27017"},
        {"service": "http://user:Se/cret4@h"},
        {"service": "ftp://h"},
        {"api": "http://user:secret@h"},
        {"api": "http://h/path"},
    ],
)
def test_a_url_that_is_wrong_is_refused_with_what_is_allowed(value: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"allowed is .*host"):
        Urls(**value)


def test_the_message_says_how_special_characters_are_written() -> None:
    with pytest.raises(ValidationError, match="percent-encoded: # as %23, / as %2F, @ as %40"):
        Urls(amqp="amqp://u:Se#cret@h/")


@pytest.mark.parametrize("other", ["amqp://v:p@two/v", "amqp://u:q@two/v", "amqp://u:p@two/w", "amqp://two/v"])
def test_the_nodes_of_a_cluster_have_the_same_user_and_virtual_host(other: str) -> None:
    with pytest.raises(ValidationError, match="same user, password and virtual host"):
        Urls(amqp=f"amqp://u:p@one/v,{other}")


@pytest.mark.parametrize(
    ("url", "several"),
    [
        ("mongodb://127.0.0.1:27017/?replicaSet=rs0", False),
        ("mongodb://user:a,b@one/?replicaSet=rs0&readPreferenceTags=dc:ny,rack:1", False),
        ("mongodb://user:pass@one:1,two:2/?replicaSet=rs0", True),
        ("mongodb+srv://cluster0.example.net/", True),
    ],
)
def test_whether_a_url_names_several_members(url: str, several: bool) -> None:
    assert urls.names_several_members(url) is several
