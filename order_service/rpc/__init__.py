"""Orders over gRPC (`proto/ordersaga/v1/orders.proto`), off unless ORDERSAGA_GRPC_PORT is set.

The same placement, actions, callers and limits as over HTTP. Needs the extra `ordersaga[grpc]`, so nothing outside
this package imports its modules before the setting is known.

`server` listens, `calls` admits each call and answers its errors, `methods` does the work, `messages` translates
between the contract's messages and the models of the HTTP API, `failures` turns errors into statuses.
"""

MAX_CALLS = 2000
"""The most admitted calls in progress in a process, of all clients."""
