"""Which acts need a second person."""

import pytest

from operations.approvals.policy import DISCARD, REPLAY, ApprovalPolicy


@pytest.mark.parametrize(
    ("actions", "ids", "needed"),
    [
        ({REPLAY}, (), True),
        ({REPLAY}, ("a",), False),
        ({DISCARD}, (), False),
        (set(), (), False),
    ],
)
def test_an_act_on_letters_needs_one_unless_each_letter_is_named(
    actions: set[str], ids: tuple[str, ...], needed: bool
) -> None:
    assert ApprovalPolicy(actions=frozenset(actions)).letters_need(REPLAY, ids) is needed
