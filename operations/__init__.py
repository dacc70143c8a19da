"""What an operator runs: the `ordersaga` command line.

Owns the local stack (MongoDB, RabbitMQ and the services as processes of this machine), the checks of its
prerequisites, the audit, the load test and the demo. It talks to services over HTTP and reads their databases
for the audit; no service knows of it.
"""
