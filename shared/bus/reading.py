"""Reads a delivery as a message of its contract, or says why it can never be one."""

import reprlib
from collections.abc import Container

from pydantic import ValidationError

from shared import topology
from shared.broker_rights import may_send_by_name
from shared.bus import Delivery
from shared.contracts import BY_ROUTING_KEY, Message
from shared.errors import PoisonError, UnknownTypeError, UnknownValueError

MAX_BODY_BYTES = 256 * 1024
"""The largest valid order needs less than a quarter of this; a larger body is rejected without being parsed."""

_SHOWN_ERRORS = 5
_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = 80


def type_name(delivery: Delivery) -> str:
    """Return the message type: the routing key, or the `type` property if the message was sent to the queue by name.

    A retry or a replay comes to a queue by name, so its routing key is the queue's name and only `type` has the message
    type. It can be believed there: only the service itself can send to its retry exchanges, and only operations to an
    inbox by its name. In a message that was routed by its type, `type` can only repeat or contradict the routing key.
    """
    if delivery.exchange in topology.BY_QUEUE_NAME:
        return delivery.type or delivery.routing_key
    return delivery.routing_key


def read(delivery: Delivery, handled: Container[type[Message]]) -> Message:
    """Return the message in a delivery.

    Raises PoisonError with a short reason if its type contradicts its routing key, is missing or not in `handled`, if
    its sender may not send to an inbox by its name, or if its body is too large, not JSON or not in the contract's
    shape. Raises UnknownTypeError if its type has no contract, and UnknownValueError if nothing is wrong but words that
    the contract does not list, such as a new status: a newer sender may know more of both.
    """
    type_ = type_name(delivery)
    if delivery.exchange == "" and not may_send_by_name(delivery.user_id):
        raise PoisonError(f"{_VALUES.repr(delivery.user_id)} may not send to an inbox by its name")
    if delivery.type and delivery.type != type_:
        shown = _VALUES.repr(type_), _VALUES.repr(delivery.type)
        raise PoisonError(f"the routing key is {shown[0]}, but the type is {shown[1]}")
    if type_ == delivery.queue:
        raise PoisonError("the message has no type")
    contract = BY_ROUTING_KEY.get(type_)
    if contract is None:
        raise UnknownTypeError(f"unknown message type {_VALUES.repr(type_)}")
    if contract not in handled:
        raise PoisonError(f"{contract.routing_key} is not handled here ({delivery.queue})")
    if len(delivery.body) > MAX_BODY_BYTES:
        raise PoisonError(f"the body has {len(delivery.body)} bytes, the maximum is {MAX_BODY_BYTES}")
    try:
        return contract.model_validate_json(delivery.body)
    except ValidationError as error:
        kind = UnknownValueError if _knows_fewer_words(error) else PoisonError
        raise kind(f"not a valid {contract.routing_key}: {_explain(error)}") from None


def _knows_fewer_words(error: ValidationError) -> bool:
    """Return whether each problem is a word that is not one of those which a field may have."""
    problems = error.errors(include_url=False, include_context=False)
    return all(
        problem["type"] in ("literal_error", "enum") and isinstance(problem["input"], str) for problem in problems
    )


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    shown = [_one(problem["loc"], problem["msg"], problem["input"]) for problem in problems[:_SHOWN_ERRORS]]
    if len(problems) > _SHOWN_ERRORS:
        shown.append(f"and {len(problems) - _SHOWN_ERRORS} more")
    return "; ".join(shown)


def _one(path: tuple[int | str, ...], reason: str, value: object) -> str:
    if not path:
        return reason
    return f"{'.'.join(map(str, path))}: {reason} (got {_VALUES.repr(value)})"
