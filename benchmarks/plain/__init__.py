"""A plain implementation of the same work, to compare ours with: what is written first, and works.

Three services that take one message at a time: each is read, decided on, stored and acknowledged by itself, through
FastAPI, aio-pika and PyMongo as their documentation shows them. It has what one would not leave out: durable quorum
queues, confirmed publications, journaled majority writes, guarded updates of stock and orders, and records that make a
redelivered message harmless. It lacks what ours has beyond that: callers and permissions, an outbox for what a crash
leaves unpublished, time-outs, sweeps, refunds, dead letters, metrics and an audit.

    python -m benchmarks.plain.compare
"""
