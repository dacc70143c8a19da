"""The collections of sign-in in the database of operations. Both hold only the hashes of secrets.

    sessions        people who are signed in; see `sessions`
    sign_in_links   links that sign a person in once; see `links`

MongoDB deletes what has expired. Only the module named writes a collection.
"""

from pymongo import ASCENDING, IndexModel

from shared.schema import CollectionSchema

SESSIONS = "sessions"
LINKS = "sign_in_links"

_EXPIRED = IndexModel([("expiresAt", ASCENDING)], name="expired", expireAfterSeconds=0)

SCHEMA: dict[str, CollectionSchema] = {
    SESSIONS: CollectionSchema((_EXPIRED,)),
    LINKS: CollectionSchema((_EXPIRED,)),
}
