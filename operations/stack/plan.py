"""Plans a stack: the servers and services to start, their settings and their ports."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from operations.stack import provider
from operations.stack.access import Access, plan_access
from operations.stack.broker_users import choose_virtual_host, load_users
from operations.stack.database_users import DatabaseUsers, load_key_file
from operations.stack.database_users import load_users as load_database_users
from operations.stack.encryption_keys import notification_settings
from operations.stack.environment import invalid_value, topology_options, with_values
from operations.stack.layout import (
    AMQP_URL_VARIABLE,
    CLUSTER_PORTS,
    CLUSTER_SIZE,
    EVENTS_RETENTION_VARIABLE,
    GRPC,
    GRPC_PORT_VARIABLE,
    MONGODB_URL_VARIABLE,
    SERVER_PORTS,
    TOPOLOGY_VARIABLE,
    WEBHOOKS_VARIABLE,
    Layout,
    database_prefix,
)
from operations.stack.mongod import Mongod, Security, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.program import Program
from operations.stack.rabbitmq import Epmd, RabbitMQ, find_rabbitmq
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from operations.stack.replica_set import ReplicaSetMember
from operations.stack.services import ServiceProgram
from operations.stack.start import StackStartError
from operations.stack.state import State
from shared.errors import StartError
from shared.services import CONSOLE, GRPC_PORT, NOTIFICATION, ORDER, PROCESSES, PROVISIONING, SERVICES, SIMULATOR
from shared.tls import client_context
from shared.topology import TopologyOptions

NO_SERVER_TO_CLUSTER = (
    f"--cluster starts three of each server, but {MONGODB_URL_VARIABLE} and {AMQP_URL_VARIABLE} name servers that run: "
    "unset one of them, or leave out --cluster"
)


@dataclass(frozen=True)
class StackPlan:
    """Programs in stages, each started when the one before it is ready, and the initial state."""

    stages: Sequence[Sequence[Program]]
    state: State


def make_plan(
    layout: Layout,
    services: Sequence[str],
    port_offset: int | None,
    stored: State,
    claims: PortClaims,
    environment: Mapping[str, str],
    *,
    grpc: bool = False,
    cluster: bool = False,
) -> StackPlan:
    """Plan a stack, on the ports that it used before if they are still free.

    With an offset, every port is the default port plus the offset; PortTakenError is raised if one of them is taken.
    `services` are some of PROCESSES; with `grpc` the order service serves gRPC too, with `cluster` there are three of
    each server. Raises ServerMissingError if a required server is not installed, StackStartError for an invalid URL or
    database prefix, a file of a setting or of a certificate that cannot be used, or a cluster of no server.
    """
    try:
        environment = with_values(environment)
        client_context(environment)
    except StartError as error:
        raise StackStartError(str(error)) from None
    if invalid := invalid_value(environment):
        raise StackStartError(invalid)
    if cluster and environment.get(MONGODB_URL_VARIABLE) and environment.get(AMQP_URL_VARIABLE):
        raise StackStartError(NO_SERVER_TO_CLUSTER)
    environment = {**environment, **_webhooks_setting(environment, services, stored)}
    ports = _claim_ports(_needed_ports(services, environment, grpc, cluster), port_offset, stored, claims)
    node = stored.node or _node_with_data(layout) or f"ordersaga-{secrets.token_hex(4)}"
    servers = _plan_servers(layout, node, ports, environment, cluster)
    access = plan_access(layout, environment)
    options = topology_options(environment)
    settings = {**environment, **servers.urls, **access.settings, **_events_settings(environment, options)}
    if GRPC in ports:
        settings[GRPC_PORT_VARIABLE] = str(ports[GRPC])
    simulator, running = _plan_services(layout, services, ports, settings, servers.of_services, access)
    state = replace(
        State(),
        node=node,
        ports={**stored.ports, **ports},
        mongodb_url=servers.urls[MONGODB_URL_VARIABLE],
        mongodb_has_users=servers.mongodb_has_users,
        amqp_url=servers.urls[AMQP_URL_VARIABLE],
        database_prefix=database_prefix(environment),
        events_retention=options.events_retention,
        partitions=options.partitions,
        webhooks=options.webhooks,
        needs_keys=access.console_key is not None,
        grpc_port=settings.get(GRPC_PORT_VARIABLE) or None,
        cluster=cluster,
    )
    # Started with the servers and ended after the services: a job that is due may buy at any time in between.
    servers.stages[-1].extend(simulator)
    return StackPlan([*servers.stages, running], state)


def _webhooks_setting(environment: Mapping[str, str], services: Sequence[str], stored: State) -> dict[str, str]:
    """Return the setting that switches webhooks off if orders are taken, and nobody has ever sent webhooks.

    The inbox of the service that does would only grow. If it has run before, webhooks may be registered, and their
    events wait there for it. It may also use a broker that was given.
    """
    is_given = environment.get(WEBHOOKS_VARIABLE) or environment.get(AMQP_URL_VARIABLE)
    is_known = NOTIFICATION.name in services or NOTIFICATION.name in stored.ports
    return {} if is_given or is_known or ORDER.name not in services else {WEBHOOKS_VARIABLE: "off"}


def _events_settings(environment: Mapping[str, str], options: TopologyOptions) -> dict[str, str]:
    """Return the setting in the spelling that every service reads: some take an empty variable for one not set."""
    off = environment.get(EVENTS_RETENTION_VARIABLE) is not None and not options.events_retention
    return {EVENTS_RETENTION_VARIABLE: "off"} if off else {}


def _node_with_data(layout: Layout) -> str | None:
    """Return the name of the RabbitMQ node that has data here; a node with another name would not read it."""
    found = sorted(layout.rabbitmq.glob("data/*@localhost"), key=lambda path: path.stat().st_mtime)
    return found[-1].name.removesuffix("@localhost") if found else None


def _needed_ports(services: Sequence[str], environment: Mapping[str, str], grpc: bool, cluster: bool) -> dict[str, int]:
    """Return the default ports that this stack needs."""
    of_servers = CLUSTER_PORTS if cluster else SERVER_PORTS
    needed = {name: PROCESSES[name].port for name in services}
    if grpc and ORDER.name in services:
        needed[GRPC] = GRPC_PORT
    for name, port in of_servers.items():
        external = MONGODB_URL_VARIABLE if name.startswith("mongodb") else AMQP_URL_VARIABLE
        if not environment.get(external):
            needed[name] = port
    return needed


def _claim_ports(defaults: Mapping[str, int], offset: int | None, stored: State, claims: PortClaims) -> dict[str, int]:
    if offset is not None:
        return claims.claim_exactly({name: port + offset for name, port in defaults.items()})
    return claims.claim_preferred(defaults, stored.ports, defaults)


def _plan_services(
    layout: Layout,
    names: Sequence[str],
    ports: Mapping[str, int],
    settings: Mapping[str, str],
    of_services: Mapping[str, Mapping[str, str]],
    access: Access,
) -> tuple[list[ServiceProgram], list[ServiceProgram]]:
    """Return the simulator, if it is requested, and the services.

    `of_services` has the settings of each service for the servers, by its name.
    """

    def program(name: str, environment: Mapping[str, str]) -> ServiceProgram:
        return ServiceProgram(name, ports[name], {**environment, **of_services.get(name, {})})

    simulator = [program(SIMULATOR.name, provider.simulator_settings(settings))] if SIMULATOR.name in names else []
    simulator_url = simulator[0].url if simulator else None
    services = []
    for name in names:
        if name == PROVISIONING.name:
            services.append(program(name, provider.provisioning_settings(layout, simulator_url, settings)))
        elif name == NOTIFICATION.name:
            services.append(program(name, notification_settings(layout, settings)))
        elif name not in (CONSOLE.name, SIMULATOR.name):
            services.append(program(name, settings))
    if CONSOLE.name in names:
        services.append(program(CONSOLE.name, _for_console(services, settings) | access.console_settings))
    return simulator, services


def _for_console(services: Sequence[ServiceProgram], settings: Mapping[str, str]) -> dict[str, str]:
    """Return the console's environment: the URLs of this stack's services, unless others are given."""
    own = {PROCESSES[service.name].url_variable: service.url for service in services}
    # An empty variable counts as not set.
    return {**settings, **{name: settings.get(name) or url for name, url in own.items()}}


@dataclass(frozen=True)
class _Servers:
    """The servers to start, in stages, the variables with their URLs, and the settings of each service for them."""

    stages: list[list[Program]]
    urls: Mapping[str, str]
    of_services: Mapping[str, Mapping[str, str]]
    mongodb_has_users: bool


def _plan_servers(
    layout: Layout, node_name: str, ports: Mapping[str, int], environment: Mapping[str, str], cluster: bool
) -> _Servers:
    mongodb_url, amqp_url = environment.get(MONGODB_URL_VARIABLE), environment.get(AMQP_URL_VARIABLE)
    first: list[Program] = []
    second: list[Program] = []
    third: list[Program] = []
    database_users: DatabaseUsers | None = None
    broker: RabbitMQ | RabbitMQCluster | None = None
    if not mongodb_url:
        database_users = load_database_users(layout.secrets, database_prefix(environment))
        security = Security(database_users, load_key_file(layout.secrets))
        members = _plan_mongodb(layout, ports, environment, security, cluster)
        mongodb_url = members[0].replica_set_url
        second.extend(members)
    if not amqp_url:
        installation = find_rabbitmq(environment)
        users = load_users(layout.secrets, choose_virtual_host(layout.rabbitmq))
        kind = RabbitMQCluster if cluster else RabbitMQ
        broker = kind(installation, layout.rabbitmq, node_name, ports, environment, users)
        amqp_url = broker.url
        first.append(Epmd(installation, ports["epmd"], environment))
        # Empty nodes join one that is complete: if two boot together, both may make the virtual host, which breaks it.
        for node in broker.nodes:
            (second if node is broker.nodes[0] or node.has_data else third).append(node)
    of_broker, of_database = _broker_settings(broker, environment), _database_settings(database_users, mongodb_url)
    return _Servers(
        [first, second, *([third] if third else [])],
        {MONGODB_URL_VARIABLE: mongodb_url, AMQP_URL_VARIABLE: amqp_url},
        {name: {**of_broker[name], **of_database[name]} for name in SERVICES},
        database_users is not None,
    )


def _plan_mongodb(
    layout: Layout, ports: Mapping[str, int], environment: Mapping[str, str], security: Security, cluster: bool
) -> Sequence[Mongod]:
    binary = find_mongod(environment)
    if not cluster:
        return [Mongod(binary, layout.mongodb, ports["mongodb"], environment, security)]
    return [
        ReplicaSetMember(number, binary, layout.mongodb, ports, environment, security)
        for number in range(1, CLUSTER_SIZE + 1)
    ]


def _database_settings(users: DatabaseUsers | None, url: str) -> dict[str, dict[str, str]]:
    """Return the settings of each service for MongoDB, by its name: its own user on a mongod of this stack.

    On a MongoDB that somebody else runs, all use the given URL.
    """
    if users is None:
        return {name: {} for name in SERVICES}
    return {name: {MONGODB_URL_VARIABLE: users.url(service.user, url)} for name, service in SERVICES.items()}


def _broker_settings(
    broker: RabbitMQ | RabbitMQCluster | None, environment: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return the settings of each service for the broker, by its name: its own user on a node of this stack.

    On a broker that somebody else runs, all use the given URL, and declare the topology unless told to check it.
    """
    if broker is None:
        declare = {TOPOLOGY_VARIABLE: environment.get(TOPOLOGY_VARIABLE) or "declare"}
        return dict.fromkeys(SERVICES, declare)
    return {
        name: {AMQP_URL_VARIABLE: broker.url_of(service.user), TOPOLOGY_VARIABLE: "check"}
        for name, service in SERVICES.items()
    }
