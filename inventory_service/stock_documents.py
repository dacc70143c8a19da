"""Products and delivery slots out of the documents that `stock_items` stores. Pure."""

from typing import Any, cast

from inventory_service.stock import SLOT, Kind, Product, Slot, StockItem
from shared.database import Document


def stock_item_of(document: Document) -> StockItem:
    """Return the product or slot of a document."""
    stored: dict[str, Any] = {
        "id": document["_id"],
        "version": document["version"],
        "created_at": document["createdAt"],
        "updated_at": document["updatedAt"],
        "quantity": document["quantity"],
        "supplied": document["supplied"],
        "pending_moves": document["moving"],
        "pending_since": document.get("markedSince"),
    }
    if document["kind"] == SLOT:
        return Slot(
            **stored,
            start=document["start"],
            end=document["end"],
            disabled=document["disabled"],
            adjusted=document["adjusted"],
            ceiling=document.get("ceiling"),
        )
    return Product(
        **stored,
        kind=Kind(document["kind"]),
        name=document.get("name"),
        price=document.get("price"),
        package=document.get("package"),
        package_id=document.get("packageId"),
        ram=document.get("ram"),
        shipped=document.get("shipped", 0),
        on_sale=document.get("onSale", True),
        off_sale_reason=document.get("offSaleReason"),
    )


def product_of(document: Document) -> Product:
    """Return the product of a document that is known to be one."""
    return cast("Product", stock_item_of(document))


def slot_of(document: Document) -> Slot:
    """Return the slot of a document that is known to be one."""
    return cast("Slot", stock_item_of(document))
