"""The collections that have records under an order's id, over all databases of a stack."""

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from operations.reading.participant_records import PARTICIPANT_RECORDS, Document
from shared.services import ORDER, PAYMENT, PROVISIONING

KINDS = ("orders", *(row.collection for row in PARTICIPANT_RECORDS), "charges", "jobs", "intents")
"""The kinds of these records, as reports name them."""


def order_collections(client: AsyncMongoClient[Document], prefix: str) -> dict[str, AsyncCollection[Document]]:
    """Return the collection of each kind."""
    orders, payments, provisioning = (client[service.database_in(prefix)] for service in (ORDER, PAYMENT, PROVISIONING))
    return {
        "orders": orders["orders"],
        **{row.collection: client[row.service.database_in(prefix)][row.collection] for row in PARTICIPANT_RECORDS},
        "charges": payments["gateway_charges"],
        "jobs": provisioning["jobs"],
        "intents": payments["stripe_intents"],
    }
