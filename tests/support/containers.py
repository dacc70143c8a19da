"""MongoDB and RabbitMQ for a test run as containers, where a Docker engine of this machine answers.

The images are those of docker-compose.yml, and the same variables name others. Ports are published on 127.0.0.1 alone.
The containers are removed when the context ends, at the latest when the process does; those of a killed run are removed
when the next one starts.
"""

import atexit
import contextlib
import os
import secrets
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any, Self

import docker
import docker.types
from docker.errors import DockerException, ImageNotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import ExecWaitStrategy

from deploy.container.initiate_replica_set import initiate
from operations.stack.ports import PortClaims
from shared.topology import PARTITIONS_PLUGIN
from tests.support.servers import Servers

MONGO_IMAGE = os.environ.get("ORDERSAGA_MONGO_IMAGE", "mongo:8")
RABBITMQ_IMAGE = os.environ.get("ORDERSAGA_RABBITMQ_IMAGE", "rabbitmq:4-management")
REPLICA_SET = "rs0"
READY_WITHIN_SECONDS = 90
# Whose containers these are, as host:pid. Testcontainers' own cleaner is one more image to pull, so it is off.
OWNER_LABEL = "ordersaga.tests.owner"


class ContainersUnavailableError(RuntimeError):
    """Containers cannot be used here; the message is one line that says why."""


def engine_answers() -> bool:
    """Return whether a Docker engine of this machine answers; the tests cannot reach ports on another machine."""
    if not _listens_here(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"):
        return False
    try:
        with _engine(timeout=5) as engine:
            return bool(engine.ping())
    except DockerException:
        return False


def obstacle() -> str | None:
    """Return why containers cannot be used here, in one line, or None if they can. Pulls missing images."""
    if not engine_answers():
        return "no Docker engine answers"
    with _engine(timeout=300) as engine:
        for image in (MONGO_IMAGE, RABBITMQ_IMAGE):
            if problem := obtain(engine, image):
                return problem
    return None


@contextlib.contextmanager
def start_containers() -> Iterator[Servers]:
    """Start both servers, initiate the replica set, and give their URLs; ends them with the context.

    Raises ContainersUnavailableError where `obstacle` names one.
    """
    if problem := obstacle():
        raise ContainersUnavailableError(problem)
    _remove_orphans()
    testcontainers_config.ryuk_disabled = True
    with contextlib.ExitStack() as stack:
        atexit.register(stack.close)
        stack.callback(atexit.unregister, stack.close)
        broker = stack.enter_context(RabbitMQContainer())
        database = stack.enter_context(MongoContainer(stack.enter_context(PortClaims()).claim_free()))
        broker.wait_until_ready()
        database.wait_until_ready()
        yield Servers(database.url, broker.url, "containers")


class _LocalContainer(DockerContainer):
    """A container whose ports are published on 127.0.0.1 and that says whose it is."""

    def __init__(self, image: str, **kwargs: Any) -> None:
        super().__init__(image, labels={OWNER_LABEL: f"{socket.gethostname()}:{os.getpid()}"}, **kwargs)

    def publish(self, port: int, host_port: int | None = None) -> Self:
        """Publish a port on 127.0.0.1, by default under a free one."""
        # The library's own methods take no address and publish on all of them.
        self.ports[f"{port}/tcp"] = ("127.0.0.1", host_port)  # type: ignore[assignment]
        return self


class MongoContainer(_LocalContainer):
    """mongod as a one-member replica set.

    It listens on the very port that is published, so that the member's one address, 127.0.0.1:port, leads to it from
    inside the container and from this machine alike. Drivers follow that address, not the one they were given.
    """

    def __init__(self, port: int) -> None:
        super().__init__(MONGO_IMAGE)
        self._address = f"127.0.0.1:{port}"
        self.publish(port, port)
        self.with_command(["--replSet", REPLICA_SET, "--port", str(port), "--wiredTigerCacheSizeGB", "1"])

    @property
    def url(self) -> str:
        return f"mongodb://{self._address}/?replicaSet={REPLICA_SET}&w=majority"

    def wait_until_ready(self) -> None:
        """Initiate the replica set and wait for its primary; raises TimeoutError."""
        initiate(f"mongodb://{self._address}/", REPLICA_SET, self._address, within=READY_WITHIN_SECONDS)


class RabbitMQContainer(_LocalContainer):
    """A broker with its own virtual host, user and password."""

    def __init__(self) -> None:
        # Erlang reserves memory for as many files as are allowed, and some engines allow a billion.
        files = docker.types.Ulimit(name="nofile", soft=16384, hard=16384)
        super().__init__(RABBITMQ_IMAGE, hostname="rabbitmq", init=True, ulimits=[files])
        self._virtual_host = f"tests-{secrets.token_hex(4)}"
        self._password = secrets.token_hex(8)
        self.publish(5672)
        self.with_envs(
            RABBITMQ_DEFAULT_USER="tests",
            RABBITMQ_DEFAULT_PASS=self._password,
            RABBITMQ_DEFAULT_VHOST=self._virtual_host,
        )

    @property
    def url(self) -> str:
        return f"amqp://tests:{self._password}@127.0.0.1:{self.get_exposed_port(5672)}/{self._virtual_host}"

    def wait_until_ready(self) -> None:
        """Wait until the listener is open, which it is when the broker has booted; raises TimeoutError."""
        # From inside, because the engine's proxy accepts connections to a published port before anyone listens.
        listens = ExecWaitStrategy(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5672"])
        listens.with_startup_timeout(READY_WITHIN_SECONDS).with_poll_interval(0.2).wait_until_ready(self)
        self.exec(["rabbitmq-plugins", "enable", PARTITIONS_PLUGIN])


@contextlib.contextmanager
def _engine(timeout: int) -> Iterator[docker.DockerClient]:
    engine = docker.from_env(timeout=timeout)
    try:
        yield engine
    finally:
        engine.close()


def _listens_here(url: str) -> bool:
    """Return whether something on this machine listens at an engine's address.

    Checked before the client connects: it leaves its socket open if nothing listens, which fails a test run.
    """
    address = urllib.parse.urlsplit(url)
    try:
        if address.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(address.path)
        elif address.hostname in ("127.0.0.1", "::1", "localhost"):
            socket.create_connection((address.hostname, address.port or 2375), timeout=5).close()
        else:
            return False
    except OSError:
        return False
    return True


def obtain(engine: docker.DockerClient, image: str) -> str | None:
    """Return None once the image is here, pulled if it was not, else why it is not."""
    if _is_here(engine, image):
        return None
    repository, _, tag = image.rpartition(":")
    try:
        said = engine.api.pull(repository, tag)
    except (DockerException, OSError) as error:
        said = str(error)
    if _is_here(engine, image):
        return None
    return f"the image {image} is not here and cannot be pulled: {said.strip().splitlines()[-1][:200]}"


def _is_here(engine: docker.DockerClient, image: str) -> bool:
    try:
        engine.images.get(image)
    except ImageNotFound:
        return False
    return True


def _remove_orphans() -> None:
    """Remove the containers of test runs of this machine whose process is gone."""
    with _engine(timeout=60) as engine:
        for container in engine.containers.list(all=True, filters={"label": OWNER_LABEL}):
            host, _, pid = container.labels[OWNER_LABEL].rpartition(":")
            if host == socket.gethostname() and not _runs(int(pid)):
                with contextlib.suppress(DockerException):  # another run removes it at this moment
                    container.remove(force=True, v=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
