"""The commands `ordersaga orders`: list, show, cancel, retry, refund, nudge, resume and stop."""

import typer

from operations.commands.order import timeline
from operations.commands.orders.acting import action_command, resume, stop
from operations.commands.orders.listing import list_orders

DESCRIPTIONS = {
    "cancel": "Cancel orders that are PENDING or PROVISIONING: stock and money are returned.\n\n"
    "The reason becomes the failure reason of each order, which its customer may see.",
    "retry": "Retry FAILED orders whose money is held: the provisioning, or the capture of the payment, starts again.",
    "refund": "Refund FAILED orders whose money is held: stock and money are returned now.",
    "nudge": "Send unsettled orders again what they are owed: the messages that they wait for answers to.\n\n"
    "Each service answers from its record, so nothing is done twice. `ordersaga recover` does it for all orders.",
}

orders = typer.Typer(no_args_is_help=True)


@orders.callback()
def _group() -> None:
    """List orders, show one, or cancel, retry, refund or nudge many of them."""


orders.command("list")(list_orders)
orders.command("show")(timeline)
for name, description in DESCRIPTIONS.items():
    orders.command(name)(action_command(name, description))
orders.command("resume")(resume)
orders.command("stop")(stop)
