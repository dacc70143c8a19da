"""The stack as processes of this machine: MongoDB, a private RabbitMQ node and the services, supervised.

`layout` says where everything of one stack lies, `state` what is remembered of it, `ports` which ports it has,
`processes` how a process is started, recognised and ended, `mongod`, `rabbitmq` and `services` what is run, `provider`
who sells it servers, `supervisor` keeps it running and `commands` are the command line's `up`, `down` and `status`.
"""
