"""The form for a refund in part of an order: by amount, or by units of one line."""

from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Form, Request, Response

from operations.approvals.policy import REFUND_PART
from operations.console.approvals import ask_for_approval
from operations.console.dependencies import ConsoleDependencies
from operations.console.forms import FormKey, Why, actor, redirect
from operations.console.operator_actions import ActionFailed, OperatorAction, ServiceCall, execute
from operations.console.pages import Pages
from operations.console.upstream import path
from operations.timeline.records import read_records
from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.database import Document
from shared.http import conflict, not_found
from shared.money import to_json_number, to_minor_units

FORM = "/orders/{order_id}/refund-part"


def is_refundable(order: Document | None) -> bool:
    """Return whether the order's state allows a refund in part; the order service checks again."""
    return order is not None and order.get("status") in ("CONFIRMED", "COMPLETED") and order.get("fulfilment") != "vps"


def add_refund_form(router: APIRouter, dependencies: ConsoleDependencies, pages: Pages) -> None:
    """Add the form and its action to the routes about orders."""

    def show(
        request: Request, order: Document, *, key: str, filled: Document, error: ActionFailed | None = None
    ) -> Response:
        counted = sum(r["amount"] for r in order.get("refunds") or () if r["status"] in ("PENDING", "REFUNDED"))
        return pages.show(
            request,
            "order_refund.html",
            error.status if error else HTTPStatus.OK,
            order=order,
            left=order["totalAmount"] - counted,
            key=key,
            filled=filled,
            error=error,
            needs_approval=dependencies.approval_policy.order_needs(order.get("totalAmount")),
        )

    @router.get(FORM)
    @requires(Permission.ORDERS_FULFIL)
    async def ask(request: Request, order_id: str) -> Response:
        """Ask for the part to refund, and a reason."""
        order = await _order(dependencies, order_id)
        if not is_refundable(order):
            raise conflict(f"An order that is {order.get('status')} cannot be refunded in part")
        return show(request, order, key=uuid4().hex, filled={})

    @router.post(FORM)
    @requires(Permission.ORDERS_FULFIL)
    async def act(
        request: Request,
        order_id: str,
        why: Annotated[Why, Form()],
        key: FormKey,
        amount: Annotated[str, Form(max_length=20)] = "",
        product: Annotated[str, Form(max_length=200)] = "",
        quantity: Annotated[str, Form(max_length=10)] = "",
        restock: Annotated[str, Form(max_length=10)] = "",
    ) -> Response:
        """Have the order service refund the part, log it, and show the order."""
        order = await _order(dependencies, order_id)
        filled: Document = {
            "why": why,
            "amount": amount,
            "product": product,
            "quantity": quantity,
            "restock": restock,
        }
        try:
            body = _body(filled)
        except ValueError as error:
            return show(request, order, key=key, filled=filled, error=ActionFailed("Not done", str(error), 422))
        if dependencies.approval_policy.order_needs(order.get("totalAmount")):
            return await ask_for_approval(
                request, dependencies, action=REFUND_PART, subject=order_id, why=why, parameters={"refund": body}
            )
        action = OperatorAction(actor(request), why, REFUND_PART, order_id)
        address = path("orders", order_id, "refunds")
        failed = await execute(dependencies, action, ServiceCall("POST", "order", address, body, key), done="accepted")
        if failed is None:
            return redirect(path("orders", order_id))
        return show(request, await _order(dependencies, order_id), key=key, filled=filled, error=failed)


async def _order(dependencies: ConsoleDependencies, order_id: str) -> Document:
    order = (await read_records(dependencies.client, dependencies.prefix, order_id)).order
    if order is None:
        raise not_found(f"Order {order_id}")
    return order


def _body(filled: Document) -> dict[str, Any]:
    """Return the request to the order service. Raises ValueError if a field is no number."""
    body: dict[str, Any] = {"reason": filled["why"]}
    if filled["product"]:
        body["items"] = [{"productId": filled["product"], "quantity": _units(filled["quantity"])}]
        return body | {"restock": bool(filled["restock"])}
    return body | {"amount": _amount(filled["amount"])}


def _amount(text: str) -> int | float:
    try:
        return to_json_number(to_minor_units(Decimal(text)))
    except (ArithmeticError, ValueError):
        raise ValueError("the amount must be a number such as 19.99") from None


def _units(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("the units must be a whole number") from None
