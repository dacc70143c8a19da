"""Says before an upgrade, or a rollback, whether a release can carry on what is in flight.

`decision` is pure, `in_flight` reads the databases, the broker and the processes.
"""
