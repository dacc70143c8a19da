"""The collection of saved views in the database of operations; only `records` writes it."""

from pymongo import ASCENDING, IndexModel

from shared.schema import CollectionSchema

VIEWS = "saved_views"

SCHEMA: dict[str, CollectionSchema] = {
    VIEWS: CollectionSchema((IndexModel([("page", ASCENDING), ("name", ASCENDING)], name="named", unique=True),)),
}
"""A name is used once on a page."""
