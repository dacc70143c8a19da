"""The stack as supervised processes on this machine: MongoDB, a private RabbitMQ and the services.

Files: `layout` has the paths of a data directory, `files` writes to it, `relocation` detects that it was moved or
copied, `state` stores the state of the stack.

Programs: `program` is the interface of what the supervisor runs; `mongod`, `rabbitmq` and `services` implement it.
`replica_set` and `rabbitmq_cluster` make three of a server one cluster, whose queues `queue_members` spreads over it.
`ports` claims their ports, `environment` selects their environment variables, `provider` configures the provider of
servers, `processes` starts, identifies and ends processes.

Life cycle: `plan` decides what to start, `start` starts one program, `supervisor` keeps all of them running and reports
through `state_writer`, `run` puts it together, `background` runs it detached, `orphans` ends what a killed supervisor
left, `status` checks a running stack.
"""
