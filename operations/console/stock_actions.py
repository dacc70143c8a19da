"""What operators do with the stock of a product: on the console, over the operations API, and by commands."""

from operations.console.dependencies import ConsoleDependencies
from operations.console.operator_actions import (
    ActionDone,
    ActionFailed,
    OperatorAction,
    ServiceCall,
    execute,
    execute_once,
)
from operations.console.upstream import path

RESTOCK, SALE = "product.restock", "product.sale"


async def add_units(
    dependencies: ConsoleDependencies, action: OperatorAction, units: int, key: str
) -> ActionDone | ActionFailed:
    """Add units to the free stock of the product that the action names, once for each key, and log it."""
    where, body = path("inventory", action.subject, "restock"), {"quantity": units}
    done = f"{units:,} unit{'' if units == 1 else 's'} added"
    return await execute_once(dependencies, action, ServiceCall("POST", "inventory", where, body, key), done=done)


async def switch_sale(
    dependencies: ConsoleDependencies, action: OperatorAction, *, on_sale: bool
) -> ActionFailed | None:
    """Put the product that the action names on sale, or take it off for the reason of the action, and log it."""
    body = {"onSale": on_sale} | ({} if on_sale else {"reason": action.why})
    where, done = path("products", action.subject), "on sale" if on_sale else "off sale"
    return await execute(dependencies, action, ServiceCall("PATCH", "inventory", where, body), done=done)
