"""Tells whether a database holds a part of a backup only: it has a certain collection until a restore is finished.

A collection rather than a document: every service sees it with the rights that it has anyway.
"""

from shared.database import Database

COLLECTION = "unfinished_restore"
REMEDY = "restore into an empty stack: `ordersaga up --only '' --data-dir NEW` starts one"


async def unfinished_restore(database: Database) -> str | None:
    """Return in words that a restore into the database is not finished, and what to do; None if there is none."""
    listed = await database.command("listCollections", filter={"name": COLLECTION}, nameOnly=True)
    if not listed["cursor"]["firstBatch"]:
        return None
    return (
        f"a restore into {database.name} is not finished, so it holds a part of a backup; "
        f"if that restore was interrupted, {REMEDY}"
    )
