"""Create the secrets of the stack, unless they exist, and give each container its own.

    python create_secrets.py [--tls | --cluster]

Passwords, API keys and MongoDB's key file are made once and stay in /var/lib/ordersaga/secrets, which only containers
that prepare the stack see. What a container needs is in a volume of its own, mounted here below /of: its URLs with its
user and password, and for the servers what they check passwords against. With --tls, the URLs are those of the overlay
deploy/tls, with --cluster those of docker-compose.cluster.yml. Runs as root, because the files belong to different
users.
"""

import os
import sys
from pathlib import Path

from operations.stack.api_keys import OWN_KEYS, ensure_own_key
from operations.stack.broker_users import load_users as load_broker_users
from operations.stack.database_rights import MAINTENANCE
from operations.stack.database_rights import MONITORING as MONITORING_USER
from operations.stack.database_users import load_key_file
from operations.stack.database_users import load_users as load_database_users
from operations.stack.encryption_keys import check_or_create_key
from operations.stack.layout import CLUSTER_SIZE, Layout, database_prefix, numbered
from operations.stack.replica_set import CLIENT_SETTINGS
from operations.stack.secret_files import load_or_create_secret
from shared.access.permissions import Role
from shared.broker_rights import DEPLOYER, VIRTUAL_HOST
from shared.services import NOTIFICATION, SERVICES

DATA = Path("/var/lib/ordersaga")
CONTAINERS = Path("/of")
COMMANDS = "commands"
"""The container for commands, which has the users that may do most."""

MONITORING = "prometheus"
"""The container that reads the metrics of the services with a key of its own."""
EXPORTER = "mongodb-exporter"
"""The container that reads those of MongoDB with a user of its own."""
GRAFANA = "grafana"
"""The container of the dashboards, in which people sign in with the password of its user `admin`."""

OURS = 10001
"""The user of the services' image."""
OF_SERVERS = 999
"""The user of the public images of MongoDB and RabbitMQ."""
NOBODY = 65534
"""The user of the public image of Prometheus."""
OF_GRAFANA = 472
"""The user of the public image of Grafana."""


def main(*, tls: bool, cluster: bool) -> None:
    """Create what is missing and write the files of each container."""
    layout = Layout(DATA)
    keys = {name: ensure_own_key(layout, name) for name in OWN_KEYS}
    broker = load_broker_users(layout.secrets, VIRTUAL_HOST)
    database = load_database_users(layout.secrets, database_prefix(os.environ))
    users = {name: (service.user, service.user) for name, service in SERVICES.items()}
    for container, (of_database, of_broker) in {**users, COMMANDS: (MAINTENANCE, DEPLOYER)}.items():
        give(container, "mongodb-url", database.url(of_database, _mongodb_url(tls, cluster)))
        amqp_urls = [broker.url(of_broker, f"{node}:{5671 if tls else 5672}") for node in _servers("rabbitmq", cluster)]
        give(container, "amqp-url", ",".join(amqp_urls).replace("amqp:", "amqps:" if tls else "amqp:"))
        if container in keys:
            give(container, "api-key", keys[container])
    give(NOTIFICATION.name, "webhook-key", check_or_create_key(layout.webhook_key))
    give(MONITORING, "api-key", ensure_own_key(layout, "monitoring", Role.VIEWER), owner=NOBODY)
    # Each member is asked by itself: several URLs, and none of the set.
    members = [f"mongodb://{member}:27017/?appName=monitoring" for member in _servers("mongo", cluster)]
    give(EXPORTER, "mongodb-urls", ",".join(database.url(MONITORING_USER, member) for member in members))
    for name in ("admin-password", "secret-key"):
        give(GRAFANA, name, load_or_create_secret(layout.secrets, f"grafana-{name}"), owner=OF_GRAFANA)
    give("mongo", "key", load_key_file(layout.secrets).read_text(), owner=OF_SERVERS)
    # Hashes of random passwords with 256 bits: they need not be secret, and the image decides who reads them.
    give("rabbitmq", "definitions.json", broker.definitions(), mode=0o444)
    give("rabbitmq", "erlang-cookie", load_or_create_secret(layout.secrets, "rabbitmq-cookie"), owner=OF_SERVERS)
    for path in (DATA, *DATA.rglob("*")):
        os.chown(path, OURS, OURS, follow_symlinks=False)


def _servers(first: str, cluster: bool) -> list[str]:
    return [numbered(first, number) for number in range(1, (CLUSTER_SIZE if cluster else 1) + 1)]


def _mongodb_url(tls: bool, cluster: bool) -> str:
    hosts = ",".join(f"{member}:27017" for member in _servers("mongo", cluster))
    options = f"&{CLIENT_SETTINGS}" if cluster else ""
    return f"mongodb://{hosts}/?replicaSet=rs0&w=majority{options}{'&tls=true' if tls else ''}"


def give(container: str, name: str, content: str, *, owner: int = OURS, mode: int = 0o400) -> None:
    """Write a file of a container, in one step."""
    file = CONTAINERS / container / name
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(content)
        os.fchown(descriptor, owner, owner)
        os.fchmod(descriptor, mode)
    new.replace(file)


if __name__ == "__main__":
    main(tls="--tls" in sys.argv[1:], cluster="--cluster" in sys.argv[1:])
    print(f"the secrets of the stack are in {DATA / 'secrets'}, and each container has its own")  # noqa: T201
