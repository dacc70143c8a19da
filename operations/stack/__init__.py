"""The stack as processes of this machine: MongoDB, a private RabbitMQ node and the services, supervised.

`layout` says where everything of one stack lies, `files` writes there, `origin` knows where the directory was made,
`state` what is remembered of the stack, `ports` which ports it has, `environment` which variables each program gets,
`processes` how a process is started, recognised and ended, `mongod`, `rabbitmq` and `services` what is run, `provider`
who sells it servers, `supervisor` keeps it running and has a `recorder`, and `run` puts it together.
"""
