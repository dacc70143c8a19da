"""How the commands find a running stack, and the settings of the operations process.

The commands go by the environment's URLs, else by the data directory used last.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from operations.native.layout import (
    AMQP_URL_VARIABLE,
    DATABASE_PREFIX_VARIABLE,
    MONGODB_URL_VARIABLE,
    Layout,
    choose_data_directory,
)
from operations.native.services import PROCESSES
from operations.native.state import State, read_state
from shared.settings import HostNames, ServiceSettings
from shared.urls import http_url

HttpUrl = Annotated[str, http_url(credentials=True, path=True)]


class OperationsSettings(ServiceSettings):
    """Where the services are, on which an operator acts, and under which names the console answers."""

    order_url: HttpUrl = "http://127.0.0.1:3008"
    inventory_url: HttpUrl = "http://127.0.0.1:3009"
    payment_url: HttpUrl = "http://127.0.0.1:3010"
    provisioning_url: HttpUrl = "http://127.0.0.1:3011"
    console_hosts: HostNames = ()
    operator_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names of all services, and those that are the console's alone."""
        return (*self.http_names, *self.console_hosts)

    @property
    def service_urls(self) -> dict[str, str]:
        """Where each service answers HTTP, by its name."""
        urls = {
            "order": self.order_url,
            "inventory": self.inventory_url,
            "payment": self.payment_url,
            "provisioning": self.provisioning_url,
        }
        return {name: url.rstrip("/") for name, url in urls.items()}


class UnreachableError(Exception):
    """A server could not be reached, or none is known; the command line ends with exit status 3."""


@dataclass(frozen=True)
class Stack:
    """Where a stack is: its servers, the address of each of its services, its databases' prefix.

    `data_dir` is None for a stack that is known by the environment alone.
    """

    mongodb_url: str
    amqp_url: str
    urls: dict[str, str]
    data_dir: Path | None
    database_prefix: str


def locate_stack(data_dir: Path | None = None, environment: Mapping[str, str] = os.environ) -> Stack:
    """Find the stack that is meant.

    ORDERSAGA_MONGODB_URL and ORDERSAGA_AMQP_URL name its servers, ORDERSAGA_ORDER_URL, ORDERSAGA_INVENTORY_URL and
    so on its services. What they leave open is taken from the stack that runs in the data directory (the one named,
    else ORDERSAGA_DATA_DIR, else the one used last); services that are not in it are assumed at their default port.
    Raises UnreachableError when a server's URL stays unknown.
    """
    layout = Layout(choose_data_directory(data_dir, environment, last_used=True))
    state = read_state(layout)
    running = state if state.running else State()
    mongodb_url = environment.get(MONGODB_URL_VARIABLE) or running.mongodb_url
    amqp_url = environment.get(AMQP_URL_VARIABLE) or running.amqp_url
    if not mongodb_url or not amqp_url:
        raise UnreachableError(
            f"no stack runs in {layout.root}: start one (`ordersaga up --detach`), name its data directory "
            f"(ORDERSAGA_DATA_DIR), or set {MONGODB_URL_VARIABLE} and {AMQP_URL_VARIABLE}"
        )
    return Stack(
        mongodb_url,
        amqp_url,
        _service_urls(running, environment),
        layout.root if state.running else None,
        environment.get(DATABASE_PREFIX_VARIABLE) or running.database_prefix,
    )


def _service_urls(running: State, environment: Mapping[str, str]) -> dict[str, str]:
    known = {process.name: process.url for process in running.processes}
    return {
        name: environment.get(f"ORDERSAGA_{name.upper()}_URL") or known.get(name) or f"http://127.0.0.1:{service.port}"
        for name, service in PROCESSES.items()
    }
