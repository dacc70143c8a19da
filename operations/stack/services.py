"""The services and the simulator as programs of the stack."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from operations.stack.environment import is_set, process_environment
from operations.stack.layout import SMARTVPS_URL_VARIABLE
from operations.stack.program import Command
from shared.errors import StartError
from shared.services import PROCESSES, SIMULATOR
from shared.tls import CERT_FILE, client_context, plain_reason
from shared.urls import hide_credentials

PROBE_TIMEOUT_SECONDS = 3.0
# A service has 10 s to finish its work, and a little more to close.
GRACE_SECONDS = 12.0


@dataclass(frozen=True)
class ServiceProgram:
    """One of PROCESSES, with its port and the environment from which its variables are selected."""

    name: str
    port: int
    environment: Mapping[str, str]
    grace_seconds: float = GRACE_SECONDS

    @property
    def url(self) -> str:
        """The address for HTTP requests from this machine."""
        host = self.environment.get("ORDERSAGA_HTTP_HOST") or "127.0.0.1"
        scheme = (
            "https" if process_environment(PROCESSES[self.name].settings, self.environment).get(CERT_FILE) else "http"
        )
        return f"{scheme}://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"  # noqa: S104 - only compared

    def prepare(self) -> Command:
        """Return the command. -P prevents imports from the current directory."""
        process = PROCESSES[self.name]
        environment = {
            **process_environment(process.settings, self.environment),
            "ORDERSAGA_HTTP_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": import_path(self.environment),
        }
        environment.pop("ORDERSAGA_HTTP_PORT_FILE", None)  # `up` chooses the ports
        return Command((sys.executable, "-P", "-m", process.package), environment)

    async def probe(self) -> str | None:
        """Return None if /readyz answers 200, else the reason."""
        return await asyncio.to_thread(probe_readiness, self.url)


class Answer(NamedTuple):
    """What /readyz says: why the service is not ready, or what does not work although it is.

    `paused` says since when and until when the consumption of its inbox is paused.
    """

    unhealthy_reason: str | None
    degraded: str | None = None
    paused: str | None = None

    @property
    def breaker_is_open(self) -> bool:
        """Whether the consumer only tests single messages, because all of them fail."""
        return self.degraded is not None and "breaker: " in self.degraded


def probe_readiness(url: str) -> str | None:
    """Request /readyz of a service; return None if it is ready, else the reason in one line. Never raises."""
    return ask_readiness(url).unhealthy_reason


def ask_readiness(url: str) -> Answer:
    """Request /readyz of a service. Never raises."""
    try:
        status, body = _get(url, "/readyz")
    except ssl.SSLError as error:
        return Answer(f"{hide_credentials(url)}: {plain_reason(str(error))}")
    except (OSError, http.client.HTTPException) as error:
        return Answer(f"nothing answers on {hide_credentials(url)} yet: {_reason(error)}")
    except StartError as error:
        return Answer(str(error))
    if status != http.client.OK:
        return Answer(_why_not_ready(body) or f"/readyz answers {status}: {_one_line(body)}")
    return Answer(None, _degraded(body), read_pause(body))


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or "the connection broke").lower()
    return "the answer is not HTTP"


def _why_not_ready(body: bytes) -> str | None:
    """Return what the body of an unready service says it waits for."""
    try:
        return "; ".join(f"{name}: {why}" for name, why in json.loads(body)["down"].items())[:300] or None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _degraded(body: bytes) -> str | None:
    """Return what the body of a degraded service says does not work, and since when."""
    try:
        found = json.loads(body)
        return "; ".join(f"{name}: {why}, since {found['since'][name]}" for name, why in found["down"].items())[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_pause(body: bytes) -> str | None:
    """Return since when, and until when, a service says that its consumption is paused."""
    try:
        pause = json.loads(body)["paused"]
        return f"since {pause['since']}, {'until ' + pause['until'] if pause['until'] else 'until it is resumed'}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_version(url: str) -> str | None:
    """Return the version that a service runs; None if it does not answer, or not with its version. Never raises."""
    try:
        _, body = _get(url, "/healthz")
        version = json.loads(body)["version"]
    except (OSError, http.client.HTTPException, StartError, ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def _get(url: str, path: str) -> tuple[int, bytes]:
    """Return the status and the beginning of the body of an answer."""
    parts = urlsplit(url)
    headers = {}
    if parts.username is not None:  # the credentials of a proxy in front of the service
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    with contextlib.closing(_connection(parts)) as connection:
        connection.request("GET", f"{parts.path.rstrip('/')}{path}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(4096)


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    host, timeout = url.hostname or "", PROBE_TIMEOUT_SECONDS
    if url.scheme == "https":
        return http.client.HTTPSConnection(host, url.port, timeout=timeout, context=client_context())
    return http.client.HTTPConnection(host, url.port, timeout=timeout)


def _one_line(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body))[:300]
    except ValueError:
        return body.decode(errors="replace").strip().replace("\n", " ")[:300]


def choose_services(only: str | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return those of PROCESSES that a comma-separated list names, or all that are needed if there is no list.

    The simulator is not needed if the environment has the URL of a provider. Raises ValueError, with the allowed names,
    for an unknown name.
    """
    if only is None:
        return [name for name in PROCESSES if name != SIMULATOR.name or not is_set(environment, SMARTVPS_URL_VARIABLE)]
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(wanted - PROCESSES.keys()):
        raise ValueError(f"unknown service {', '.join(unknown)}; choose from {', '.join(PROCESSES)}")
    return [name for name in PROCESSES if name in wanted]


def import_path(environment: Mapping[str, str]) -> str:
    """Return a PYTHONPATH with which a process imports the project from where this process did."""
    given = environment.get("PYTHONPATH")
    own = str(Path(__file__).parents[2])
    return os.pathsep.join([given, own]) if given else own
