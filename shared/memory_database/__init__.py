"""A database in memory, for the deterministic simulation: what the record classes use of PyMongo's asyncio API.

    MemoryDatabase("orders", clock=clock)        stands in the place of a database of PyMongo
    database.connected(step)                     the same database, as another process is connected to it
    database.elect(), .delete_expired()          what happens to a server

The record tests run over it and over MongoDB, and tests/integration/test_memory_database.py compares the two with
random operations, so that they cannot drift apart.

Modelled, as MongoDB does it:
- the calls, operators, stages, options, validators and commands that the services use; any other raises
  NotImplementedError with its name
- BSON: times are cut to the millisecond, enumerations become strings, tuples lists; callers get copies
- unique, partial and sparse indexes, documents that expire (`delete_expired`), and the errors for duplicates
- transactions: each reads the state of its first statement and its own writes; conflicts abort it, other writes wait
- a log of changes and what a majority has confirmed of it, after `replication_lag`: writes wait for that, reads with
  the read concern `majority` see no more, and an election takes back the rest
- the driver's exceptions with their labels and details

Not modelled:
- the speed of anything; indexes do not decide how a query is carried out, nor, without a sort, in which order documents
  come: a query by ids returns them by id, any other in the order of their insertion
- the driver's own retries: an error that `step` raises stands for one whose retries have failed as well
- an update of several documents that other writes interrupt: it happens at once. The writes of a bulk do not.
- secondaries, unacknowledged writes, users and rights, sizes, collations, regular expressions and NaN

Nothing here reads a clock, draws a random number or starts a task: the same calls in the same order give the same
results. Waiting is on the event loop's clock.
"""

from shared.memory_database.connection import Step
from shared.memory_database.database import MemoryDatabase
from shared.memory_database.server import ReplicationLag

__all__ = ["MemoryDatabase", "ReplicationLag", "Step"]
