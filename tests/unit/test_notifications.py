"""Which incidents are sent where, when, and in which words."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operations.incidents.incident import Incident, incident_of
from operations.notifications.message import MOST_LISTED, Message, collected
from operations.notifications.rules import GATHER, INTERVAL, RETRIES, Rule, is_due, next_attempt, split
from operations.settings import OperationsSettings

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def an_incident(kind: str = "process-down", text: str = "The payment service does not answer") -> Incident:
    return Incident("i1", NOW, kind, text, "service/payment", "payment")


def a_message(*incidents: Incident, test: bool = False) -> Message:
    kept = collected([each.as_document() for each in incidents])
    listed = [incident_of(each) for each in kept["incidents"]]
    return Message("m1", "r1", NOW, listed, kept["counts"], "https://c/incidents", test)


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (Rule("", "slack"), "name"),
        (Rule("Big", "slack"), "name"),
        (Rule("r", "pager"), "channel"),
        (Rule("r", "email"), "to"),
        (Rule("r", "slack", to=("a@b.c",)), "to"),
        (Rule("r", "email", to=("a@b.c\nBcc: x@y.z",)), "to"),
        (Rule("r", "email", to=("nobody",)), "to"),
        (Rule("r", "email", to=("ä@b.c",)), "to"),
        (Rule("r", "email", to=tuple(f"a{number}@b.c" for number in range(21))), "to"),
        (Rule("r", "slack", kinds=("nothing",)), "kinds"),
        (Rule("r", "slack", severities=("bad",)), "severities"),
        (Rule("r", "slack", services=("shop",)), "services"),
    ],
)
def test_a_rule_that_is_not_valid_names_the_field(rule: Rule, field: str) -> None:
    assert [name for name, _ in rule.objections()] == [field]


def test_a_valid_rule_describes_itself() -> None:
    rule = Rule("night", "email", ("ops@example.org",), (), ("critical",), ("payment",))
    assert rule.objections() == []
    assert rule.describe() == "severity critical; service payment → email to ops@example.org"
    assert rule.describe(addresses=False) == "severity critical; service payment → email to 1 address"
    assert Rule("all", "slack").describe() == "all incidents → slack"
    assert split("a, b\nc,,a") == ("a", "b", "c")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3600), min_size=1, max_size=30))
def test_an_outage_is_few_messages(seconds: list[int]) -> None:
    """However many incidents come within an hour, a rule sends at most one message in five minutes, and none late."""
    waiting, last, sent = sorted(seconds), None, []
    for now in (NOW + number * 5 * SECOND for number in range(4000 // 5)):
        recorded = [NOW + each * SECOND for each in waiting if NOW + each * SECOND <= now]
        if recorded and is_due(recorded[0], last, now):
            assert now - recorded[0] <= max(GATHER, INTERVAL) + 5 * SECOND
            waiting, last = waiting[len(recorded) :], now
            sent.append(now)
    assert waiting == []
    assert all(later - earlier >= INTERVAL for earlier, later in itertools.pairwise(sent))


def test_forty_incidents_within_half_a_minute_are_one_message() -> None:
    assert not is_due(NOW, None, NOW + GATHER - SECOND)
    assert is_due(NOW, None, NOW + GATHER)
    assert not is_due(NOW, NOW - INTERVAL + GATHER + SECOND, NOW + GATHER)


def test_a_message_is_tried_again_and_given_up_in_the_end() -> None:
    due = [next_attempt(attempts, NOW) for attempts in range(1, len(RETRIES) + 2)]
    assert due == [*(NOW + pause for pause in RETRIES), None]


def test_a_message_says_what_happened() -> None:
    one = a_message(an_incident())
    assert one.title == "ordersaga: critical: The payment service does not answer"
    assert one.text.splitlines() == [
        "2026-01-31 09:30:00 UTC  critical  The payment service does not answer",
        "https://c/incidents",
    ]
    assert "This is a test" in a_message(test=True).text


def test_a_critical_incident_after_many_others_is_not_hidden() -> None:
    many = a_message(*[an_incident("failover", "x")] * 1000, an_incident(text="it is down"))
    assert many.title == "ordersaga: 1,001 incidents (1 critical, 1,000 warning)"
    assert many.is_urgent
    assert "it is down" in many.text.splitlines()[0]
    assert f"and {1001 - MOST_LISTED} more" in many.text
    assert many.as_json()["data"]["bySeverity"] == {"critical": 1, "warning": 1000, "info": 0}


def test_text_from_outside_cannot_write_markup_in_slack() -> None:
    message = a_message(an_incident(text="<!channel> & <https://evil|here>"))
    text = message.as_slack()["text"]
    assert "<" not in text
    assert "&lt;!channel&gt; &amp;" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"notify_webhook_url": "https://h/x"}, "must be set together"),
        ({"notify_webhook_url": "https://h/x", "notify_webhook_secret": "guess"}, "must be whsec_"),
        ({"notify_webhook_url": "http://h/x", "notify_webhook_secret": SECRET}, "must begin with https"),
        ({"notify_slack_url": "hooks.example.org/secret-part"}, "must be a URL"),
        ({"smtp_host": "mail"}, "must be set together"),
        ({"smtp_host": "mail", "smtp_from": "a@b.c", "smtp_username": "u"}, "must be set together"),
        (
            {
                "smtp_host": "mail",
                "smtp_from": "a@b.c",
                "smtp_username": "u",
                "smtp_password": "p",
                "smtp_security": "off",
            },
            "no password may be set",
        ),
        ({"smtp_from": "a@b.c\nBcc: x@y.z", "smtp_host": "mail"}, "smtp_from"),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_their_secrets(values: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        OperationsSettings.model_validate(values)
    text = "; ".join(f"{error['loc']} {error['msg']}" for error in refused.value.errors(include_input=False))
    assert said in text
    assert "secret-part" not in text


def test_settings_that_fit_show_no_secret() -> None:
    values = {"notify_slack_url": "https://hooks/T0/secret-part", "notify_webhook_url": "https://h/secret-part"}
    shown = repr(OperationsSettings.model_validate(values | {"notify_webhook_secret": SECRET}))
    assert "secret-part" not in shown
    assert SECRET not in shown
