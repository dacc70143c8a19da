"""The users of the broker as RabbitMQ imports them: definitions with password hashes, and the virtual host to use.

The rights come from shared.broker_rights. Passwords are in files of their own (see `secret_files`); the definitions
have only salted hashes of them.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from operations.stack.files import write_private
from operations.stack.secret_files import load_or_create_secret
from shared.broker_rights import RIGHTS, VIRTUAL_HOST, Rights
from shared.topology import EXCHANGE, Exchange, exchanges

FORMER_VIRTUAL_HOST = "/"
"""The virtual host of earlier releases."""

_SALT_BYTES = 4


@dataclass(frozen=True)
class BrokerUsers:
    """The virtual host of a stack, and the password of each user by its name."""

    virtual_host: str
    passwords: Mapping[str, str]

    def url(self, user: str, address: str) -> str:
        """Return the URL with which a user connects to a broker at `host:port`."""
        path = quote(self.virtual_host, safe="") if self.virtual_host != FORMER_VIRTUAL_HOST else ""
        return f"amqp://{user}:{self.passwords[user]}@{address}/{path}"

    def definitions(self) -> str:
        """Return the definitions that RabbitMQ imports, as JSON."""
        return json.dumps(definitions(self.virtual_host, self.passwords), indent=1) + "\n"


def load_users(secrets_directory: Path, virtual_host: str) -> BrokerUsers:
    """Return the users with their passwords, which are created if they do not exist yet.

    Raises the errors of `load_or_create_secret`.
    """
    passwords = {user: load_or_create_secret(secrets_directory, f"rabbitmq-{user}") for user in RIGHTS}
    return BrokerUsers(virtual_host, passwords)


def choose_virtual_host(directory: Path) -> str:
    """Return the virtual host of a RabbitMQ's data directory, and record it there.

    A directory with data of an earlier release keeps the virtual host with its queues and messages. Raises OSError.
    """
    file = directory / "virtual-host"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        chosen = FORMER_VIRTUAL_HOST if any(directory.glob("data/*@*")) else VIRTUAL_HOST
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, f"{chosen}\n".encode())
        return chosen


def definitions(virtual_host: str, passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return the virtual host, the users and their rights in the form that RabbitMQ imports.

    The exchange comes with them: from RabbitMQ 4.3 on, rights on the routing keys of an exchange need it to exist.
    """
    everyone = [RIGHTS[user] for user in passwords]
    return {
        "vhosts": [{"name": virtual_host}],
        "users": [_user(name, password) for name, password in passwords.items()],
        "permissions": [_permission(rights, virtual_host) for rights in everyone],
        "topic_permissions": [_topic_permission(rights, virtual_host) for rights in everyone],
        "exchanges": [_exchange(one, virtual_host) for one in exchanges() if one.name == EXCHANGE],
    }


def _user(name: str, password: str) -> dict[str, Any]:
    salt = secrets.token_bytes(_SALT_BYTES)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    return {
        "name": name,
        "password_hash": hashed,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": [],
        "limits": {},
    }


def _permission(rights: Rights, virtual_host: str) -> dict[str, str]:
    return {
        "user": rights.user,
        "vhost": virtual_host,
        "configure": rights.configure_pattern,
        "write": rights.write_pattern,
        "read": rights.read_pattern,
    }


def _topic_permission(rights: Rights, virtual_host: str) -> dict[str, str]:
    read = ".*" if rights.everything else ""  # for bindings, which only the deployer makes
    return {
        "user": rights.user,
        "vhost": virtual_host,
        "exchange": EXCHANGE,
        "write": rights.topic_pattern,
        "read": read,
    }


def _exchange(exchange: Exchange, virtual_host: str) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": virtual_host,
        "type": exchange.kind,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": exchange.arguments,
    }
