"""The deterministic simulation: all services on one thread under a virtual clock, and disasters that a seed draws.

A seed is drawn into a plan (`plan`): what clients and operators do, and every fault with its time and place. A world
(`world`) runs the plan: two processes of each service as their own composition roots assemble them, over the bus and
the database in memory. Nothing is real but the code: no thread, no socket, no clock, no entropy (`loop`, `entropy`). So
the same plan gives the same trace, byte by byte, in every process. At the end the books must balance (`books`).

A plan that breaks an invariant is shrunk to the fewest orders and faults that still break it (`shrinking`).
"""
