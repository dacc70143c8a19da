"""Create the passwords and keys of a stack on Kubernetes, and write them as Secrets that kubectl applies.

    python deploy/kubernetes/create_secrets.py single --directory ordersaga-secrets
    kubectl apply --filename ordersaga-secrets/secrets.yaml

The first argument is the overlay. What exists in the directory is kept, so it can be repeated: after an upgrade, after
`ordersaga keys` changed the API keys in DIRECTORY/keys.json, and with a new value. Whoever can read the directory can
do everything in the stack; keep it where you keep such things, with the backups.

Each Secret has what one pod needs: the URLs with its own users, and nothing of others. See docs/kubernetes.md.
"""

import argparse
import base64
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from operations.errors import CommandError
from operations.stack.api_keys import OWN_KEYS, ensure_own_key
from operations.stack.broker_users import BrokerUsers
from operations.stack.broker_users import load_users as load_broker_users
from operations.stack.database_rights import MAINTENANCE, USERS
from operations.stack.database_users import ADMINISTRATOR, DatabaseUsers, load_key_file
from operations.stack.database_users import load_users as load_database_users
from operations.stack.encryption_keys import check_or_create_key
from operations.stack.files import write_private
from operations.stack.layout import Layout
from shared.access.permissions import Role
from shared.broker_rights import DEPLOYER, VIRTUAL_HOST
from shared.errors import OrdersagaError
from shared.services import CONSOLE, NOTIFICATION, PAYMENT, PROVISIONING, SERVICES
from shared.settings import check_database_prefix

COMMANDS = "commands"
MONITORING = "monitoring"
FAILOVER = "connectTimeoutMS=2000&heartbeatFrequencyMS=2000"
"""Options of the driver with which a silent primary is left after seconds."""
GIVEN = {
    "notify-slack-url": CONSOLE.name,
    "notify-webhook-secret": CONSOLE.name,
    "notify-webhook-url": CONSOLE.name,
    "smtp-password": CONSOLE.name,
    "smartvps-username": PROVISIONING.name,
    "smartvps-password": PROVISIONING.name,
    "stripe-api-key": PAYMENT.name,
}
"""Secrets that others issue, each a file of the directory that the operator writes, and the service that needs it."""

Secrets = dict[str, dict[str, str]]
"""The content of each key, by the name of its Secret."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Create what is missing, and write DIRECTORY/secrets.yaml."""
    given = _parse(arguments)
    directory: Path = given.directory.resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = make_secrets(
        directory,
        given.database_prefix,
        mongodb_url=given.mongodb_url or _mongodb_url(given.overlay, given.namespace),
        broker_urls=given.broker_url or _broker_urls(given.overlay, given.namespace),
        broker_url_of_scaling=(given.broker_url or [f"amqp://rabbitmq.{given.namespace}.svc:5672"])[0],
        administrator_url=given.administrator_url.read_text().strip() if given.administrator_url else None,
    )
    file = directory / "secrets.yaml"
    write_private(file, as_manifest(secrets, given.namespace).encode())
    print(f"{len(secrets)} Secrets of the namespace {given.namespace} are in {file}")  # noqa: T201


def make_secrets(
    directory: Path,
    database_prefix: str,
    *,
    mongodb_url: str,
    broker_urls: Sequence[str],
    broker_url_of_scaling: str,
    administrator_url: str | None = None,
) -> Secrets:
    """Return the Secrets of a stack; create the passwords and keys that the directory does not have yet.

    The URLs name no user and no virtual host. KEDA, outside of the namespace, asks the broker at one address.
    `administrator_url` is that of a MongoDB which the overlay does not bring. Raises the errors of the functions that
    read and write the files.
    """
    layout = Layout(directory)
    broker = load_broker_users(layout.secrets, VIRTUAL_HOST)
    database = load_database_users(layout.secrets, database_prefix)
    users = {name: (service.user, service.user) for name, service in SERVICES.items()}
    secrets: Secrets = {}
    for name, (of_database, of_broker) in {**users, COMMANDS: (MAINTENANCE, DEPLOYER)}.items():
        secrets[name] = {
            "mongodb-url": database.url(of_database, mongodb_url),
            "amqp-url": ",".join(_broker_url(broker, of_broker, url) for url in broker_urls),
        }
    for name in OWN_KEYS:
        secrets[name]["api-key"] = ensure_own_key(layout, name)
    secrets[MONITORING] = {"api-key": ensure_own_key(layout, MONITORING, Role.VIEWER)}
    secrets["keys"] = {"keys.json": layout.keys.read_text()}
    encryption = {
        NOTIFICATION.name: {"webhook-key": check_or_create_key(layout.webhook_key)},
        PROVISIONING.name: {"credentials-key": check_or_create_key(layout.credentials_key)},
    }
    for name, key in encryption.items():
        secrets[name] |= key
        secrets[COMMANDS] |= key  # `ordersaga credentials rotate`
    for file, service in GIVEN.items():
        if (directory / file).exists():
            secrets[service][file] = (directory / file).read_text().strip()
    scaled = [service.user for service in SERVICES.values() if service is not CONSOLE]
    secrets["scaling"] = {user: _broker_url(broker, user, broker_url_of_scaling) for user in scaled}
    secrets["rabbitmq"] = {"definitions.json": broker.definitions()}
    return secrets | _of_mongodb(layout, database, administrator_url or database.url(ADMINISTRATOR, mongodb_url))


def _broker_url(broker: BrokerUsers, user: str, url: str) -> str:
    scheme, _, address = url.partition("://")
    return broker.url(user, address).replace("amqp:", f"{scheme}:", 1)


def _of_mongodb(layout: Layout, database: DatabaseUsers, administrator_url: str) -> Secrets:
    passwords = {f"mongodb-{user}": database.passwords[user] for user in (*USERS, ADMINISTRATOR)}
    return {
        "mongodb": {"key": load_key_file(layout.secrets).read_text()},
        "mongodb-administrator": {"password": database.passwords[ADMINISTRATOR]},
        "database-users": {**passwords, "administrator-url": administrator_url},
    }


def as_manifest(secrets: Mapping[str, Mapping[str, str]], namespace: str) -> str:
    """Return the Secrets in a form that kubectl applies: JSON, which is YAML too."""
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "ordersaga"}},
            "type": "Opaque",
            # Not `stringData`: kubectl would keep a key that is no longer there.
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in content.items()},
        }
        for name, content in secrets.items()
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1) + "\n"


def _mongodb_url(overlay: str, namespace: str) -> str:
    if overlay == "single":
        return "mongodb://mongodb-0.mongodb:27017/?replicaSet=rs0&w=majority"
    members = ",".join(f"mongodb-{n}.mongodb-svc.{namespace}.svc.cluster.local:27017" for n in range(3))
    return f"mongodb://{members}/?replicaSet=mongodb&w=majority&{FAILOVER}"


def _broker_urls(overlay: str, namespace: str) -> list[str]:
    if overlay == "single":
        return ["amqp://rabbitmq:5672"]
    return [f"amqp://rabbitmq-server-{n}.rabbitmq-nodes.{namespace}:5672" for n in range(3)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Create the Secrets of a stack on Kubernetes.")
    add = parser.add_argument
    add("overlay", choices=("single", "ha"))
    add("--directory", type=Path, required=True, help="for passwords and keys; created if it is missing")
    add("--namespace", default="ordersaga")
    add("--database-prefix", default="ordersaga", type=_database_prefix)
    add(
        "--mongodb-url",
        type=_own_mongodb,
        metavar="URL",
        help="a MongoDB of yours: its URL with options, without a user",
    )
    add("--administrator-url", type=Path, metavar="FILE", help="has the URL of that MongoDB's administrator")
    add(
        "--broker-url",
        type=_own_broker,
        action="append",
        metavar="URL",
        help="a node of a RabbitMQ of yours; repeatable",
    )
    return parser.parse_args(arguments)


def _database_prefix(value: str) -> str:
    try:
        return check_database_prefix(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _own_mongodb(url: str) -> str:
    if not re.fullmatch(r"mongodb(\+srv)?://[^@/]+/\?[^@]+", url):
        raise argparse.ArgumentTypeError(
            "a URL such as mongodb://host:27017/?replicaSet=rs0 is allowed, without a user"
        )
    return url


def _own_broker(url: str) -> str:
    if not re.fullmatch(r"amqps?://[^@/,]+", url):
        raise argparse.ArgumentTypeError(
            "a URL such as amqps://host:5671 is allowed, without a user and a virtual host"
        )
    return url


if __name__ == "__main__":
    try:
        main()
    except (OSError, CommandError, OrdersagaError) as error:
        sys.exit(f"the secrets cannot be created: {error}")
