"""Takes an action on one order, for a page or for the operations API."""

from operations.console.dependencies import ConsoleDependencies
from operations.console.operator_actions import ActionFailed, OperatorAction, ServiceCall, execute
from operations.console.order_messages import send_nudge
from operations.console.upstream import path
from operations.order_actions.actions import NUDGE, OrderAction
from shared.database import Document


async def take(
    dependencies: ConsoleDependencies, order_action: OrderAction, action: OperatorAction
) -> ActionFailed | None:
    """Have the service act that is responsible, and log it; return None if it did."""
    if order_action.name == NUDGE:
        return await send_nudge(dependencies, action)
    address, body = path("orders", action.subject, order_action.name), order_action.body(action.why)
    return await execute(dependencies, action, ServiceCall("POST", "order", address, body), done="accepted")


def needs_approval(dependencies: ConsoleDependencies, action: OrderAction, order: Document | None) -> bool:
    """Return whether a second person has to approve the action."""
    total = (order or {}).get("totalAmount")
    return action.moves_money and dependencies.approval_policy.order_needs(total)
