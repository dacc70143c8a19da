"""How the checks connect to MongoDB: they give up soon, so that doctor says what is wrong rather than wait for it."""

import pymongo

from shared.database import Document, with_our_tls

TIMEOUT_MS = 3000

Client = pymongo.AsyncMongoClient[Document]


def connect(url: str) -> Client:
    """Return a client, to be closed by the caller."""
    return with_our_tls(Client(url, serverSelectionTimeoutMS=TIMEOUT_MS), url)
