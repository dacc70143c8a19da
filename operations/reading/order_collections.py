"""The collections that have records under an order's id, over all databases of a stack."""

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from operations.reading.participant_records import PARTICIPANT_RECORDS, Document

KINDS = ("orders", *(row.collection for row in PARTICIPANT_RECORDS), "charges", "jobs", "intents")
"""The kinds of these records, as reports name them."""


def order_collections(client: AsyncMongoClient[Document], prefix: str) -> dict[str, AsyncCollection[Document]]:
    """Return the collection of each kind."""
    orders, payments, provisioning = (client[f"{prefix}_{name}"] for name in ("orders", "payments", "provisioning"))
    return {
        "orders": orders["orders"],
        **{row.collection: client[f"{prefix}_{row.database}"][row.collection] for row in PARTICIPANT_RECORDS},
        "charges": payments["gateway_charges"],
        "jobs": provisioning["jobs"],
        "intents": payments["stripe_intents"],
    }
