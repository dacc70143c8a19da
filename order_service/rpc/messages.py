"""The messages of the contract, from and to the models of the HTTP API."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic_core import from_json

from order_service.new_order import MAX_DISCOUNTS, NewOrder
from order_service.participants import PARTICIPANTS
from order_service.rpc.generated import orders_pb2 as pb
from shared.contracts.orders import MAX_ITEMS
from shared.http import invalid
from shared.money import to_minor_units

_AMOUNT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,20})?")

Fields = dict[str, Any]
Errors = list[tuple[str, str]]


def new_order(request: pb.CreateOrderRequest) -> NewOrder:
    """Return the order that a request asks for.

    Raises the 422 problem for a text that is no amount or no JSON, pydantic's ValidationError for the rest.
    """
    errors: Errors = []
    body = _given(
        userId=request.user_id,
        items=[_item(item, f"items[{number}]", errors) for number, item in _first(request.items, MAX_ITEMS)],
        totalAmount=_amount(request.total_amount, "totalAmount", errors),
        currency=request.currency,
        payment=_payment(request.payment) if request.HasField("payment") else None,
        delivery=_delivery(request.delivery) if request.HasField("delivery") else None,
        customer=_texts(request.customer) if request.HasField("customer") else None,
        discounts=[
            _given(code=each.code, amount=_amount(each.amount, f"discounts[{number}].amount", errors))
            for number, each in _first(request.discounts, MAX_DISCOUNTS)
        ]
        or None,
        shippingAmount=_amount(request.shipping_amount, "shippingAmount", errors),
        note=request.note,
        holdId=request.hold_id,
        # Sorted: the order of a map is not that of its sender, and a repeated request must be equal to the first.
        metadata=dict(sorted(request.metadata.items())) or None,
    )
    if errors:
        raise invalid(*errors)
    return NewOrder.model_validate(body)


def order_message(shown: Mapping[str, Any]) -> pb.Order:
    """Return an order as the HTTP API shows it."""
    return pb.Order(
        order_id=shown["orderId"],
        order_number=shown["orderNumber"],
        user_id=shown["userId"],
        owner_id=shown["ownerId"],
        items=[_item_message(item) for item in shown["items"]],
        total_amount=amount_text(shown["totalAmount"]),
        currency=shown["currency"],
        status=_status(shown["status"]),
        provisioning_status=shown["provisioningStatus"],
        failure_code=shown.get("failureCode"),
        failure_reason=shown["failureReason"],
        settled=shown["settled"],
        refunded_amount=amount_text(shown["refundedAmount"]),
        slot=shown["slot"],
        server=_server_message(shown["server"]),
        **_states(shown),
        **_times(shown),
        **_particulars(shown),
        history=[event_message(number, entry) for number, entry in enumerate(shown["history"], start=1)],
    )


def _states(shown: Mapping[str, Any]) -> Fields:
    """Return the participants' states; that of a participant which the contract does not have yet is left out."""
    states = {_snake(each.stored_field): shown[each.stored_field] for each in PARTICIPANTS}
    return {name: state for name, state in states.items() if name in pb.Order.DESCRIPTOR.fields_by_name}


def _status(word: str) -> str:
    """Return the name of a status in the contract; that of a newer release is not specified in this one."""
    name = f"ORDER_STATUS_{word}"
    return name if name in pb.OrderStatus.keys() else "ORDER_STATUS_UNSPECIFIED"  # noqa: SIM118 - not a mapping


_TIMES = ("slotStart", "slotVisibleAt", "createdAt", "updatedAt", "confirmedAt", "completedAt", "cancelledAt")


def _times(shown: Mapping[str, Any]) -> Fields:
    return {_snake(name): _time(shown[name]) for name in _TIMES}


def event_message(number: int, entry: Mapping[str, Any]) -> pb.OrderEvent:
    """Return a line of an order's history as the HTTP API shows it, with its number from 1."""
    return pb.OrderEvent(
        number=number,
        at=_time(entry["at"]),
        event=entry["event"],
        status=_status(entry["status"]),
        message=entry.get("message"),
    )


def amount_text(amount: float) -> str:
    """Return an amount of the JSON API as a decimal text with two decimals."""
    minor = to_minor_units(amount)
    return f"{minor // 100}.{minor % 100:02d}"


def field_path(name: str) -> str:
    """Return the path of a field in the messages, such as items[0].product_id for items[0].productId."""
    if name.startswith("metadata."):
        return name  # what follows is the sender's own
    return _snake(f"{name}_json" if name.endswith("].options") else name)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _given(**values: Any) -> Fields:
    """Leave out what was not given: an empty text or nothing."""
    return {name: value for name, value in values.items() if value is not None and value != ""}


def _first(elements: Iterable[Any], most: int) -> Iterable[tuple[int, Any]]:
    """Return numbered elements, only one more than are allowed: the validation refuses it, whatever follows."""
    return zip(range(most + 1), elements, strict=False)


def _texts(message: Any) -> Fields:
    """Return the texts of a message that has nothing else, by their names in JSON."""
    return _given(**{field.json_name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def _item(item: pb.Item, place: str, errors: Errors) -> Fields:
    return _given(
        productId=item.product_id,
        quantity=item.quantity,
        price=_amount(item.price, f"{place}.price", errors),
        name=item.name,
        options=_options(item.options_json, f"{place}.options", errors),
    )


def _payment(payment: pb.Payment) -> Fields:
    return _texts(payment)


def _delivery(delivery: pb.Delivery) -> Fields:
    return _given(
        slot=delivery.slot,
        method=delivery.method,
        address=_texts(delivery.address) if delivery.HasField("address") else None,
        instructions=delivery.instructions,
        callBefore=delivery.call_before if delivery.HasField("call_before") else None,
    )


def _amount(text: str, field: str, errors: Errors) -> Decimal | None:
    if not text:
        return None
    if not _AMOUNT.fullmatch(text):
        errors.append((field, 'must be a decimal number as text, such as "19.99"'))
        return None
    return Decimal(text)


def _options(text: str, field: str, errors: Errors) -> Any:
    if not text:
        return None
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        errors.append((field, "must be JSON"))
        return None


def _time(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    moment = Timestamp()
    moment.FromJsonString(text)
    return moment


def _item_message(item: Mapping[str, Any]) -> pb.Item:
    options = item.get("options")
    return pb.Item(
        product_id=item["productId"],
        quantity=item["quantity"],
        price=amount_text(item["price"]),
        name=item.get("name"),
        options_json=orjson.dumps(options).decode() if options is not None else None,
    )


def _server_message(server: Mapping[str, Any] | None) -> pb.Server | None:
    return pb.Server(**{_snake(name): value for name, value in server.items()}) if server else None


def _particulars(shown: Mapping[str, Any]) -> Fields:
    """Return the fields of what a shop lets us know, which are absent if they were not given."""
    customer, delivery = shown.get("customer"), shown.get("delivery")
    shipping = shown.get("shippingAmount")
    return {
        "customer": pb.Customer(**customer) if customer else None,
        "delivery": _delivery_message(delivery) if delivery else None,
        "discounts": [
            pb.Discount(code=each.get("code"), amount=amount_text(each["amount"]))
            for each in shown.get("discounts", ())
        ],
        "shipping_amount": amount_text(shipping) if shipping is not None else None,
        "note": shown.get("note"),
        "hold_id": shown.get("holdId"),
        "metadata": shown.get("metadata"),
        "personal_data_erased_at": _time(shown.get("personalDataErasedAt")),
    }


def _delivery_message(delivery: Mapping[str, Any]) -> pb.Delivery:
    address = delivery.get("address")
    return pb.Delivery(
        slot=delivery.get("slot"),
        method=delivery.get("method"),
        address=pb.Address(**{_snake(name): value for name, value in address.items()}) if address else None,
        instructions=delivery.get("instructions"),
        call_before=delivery.get("callBefore"),
    )
