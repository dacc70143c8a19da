"""A MongoDB and a RabbitMQ that only answer over TLS, with certificates that can be replaced while they run."""

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pymongo
import pymongo.errors

from operations.stack.layout import Layout
from operations.stack.mongod import Mongod, find_mongod
from operations.stack.ports import PortClaims
from operations.stack.processes import Child
from operations.stack.program import Command
from operations.stack.rabbitmq import Epmd, RabbitMQ, find_rabbitmq
from operations.stack.start import start
from operations.stack.state import acquire_lock
from tests.support.certificates import Certificates


class TlsMongod(Mongod):
    """A mongod that requires TLS, and client certificates where `client_certificates` is set."""

    def __init__(self, directory: Path, port: int, certificates: Certificates) -> None:
        super().__init__(find_mongod(), directory, port)
        self.port = port
        self._certificates = certificates
        self._pem = certificates.issue("mongodb").both

    def prepare(self) -> Command:
        command = super().prepare()
        tls = ("--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(self._pem), "--tlsCAFile")
        optional = "--tlsAllowConnectionsWithoutCertificates"
        return replace(command, argv=(*command.argv, *tls, str(self._certificates.ca), optional))

    async def probe(self) -> str | None:
        return await asyncio.to_thread(self.ask, self._advance)

    def ask(self, question: Callable[[Any], str | None]) -> str | None:
        """Ask the server with whatever certificate it has."""
        url = f"mongodb://127.0.0.1:{self.port}/?directConnection=true&tls=true&tlsInsecure=true"
        with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=1000) as client:
            try:
                return question(client.admin)
            except pymongo.errors.PyMongoError as error:
                return str(error)


class TlsRabbitMQ(RabbitMQ):
    """A node with a TLS listener beside the one that the tests' tools use."""

    def __init__(self, directory: Path, ports: Mapping[str, int], certificates: Certificates) -> None:
        super().__init__(find_rabbitmq(), directory, f"tls-{secrets.token_hex(4)}", ports)
        self._config = directory / "rabbitmq.conf"
        self._tls_port = ports["amqps"]
        self._authority = certificates.ca
        self._pair = certificates.issue("rabbitmq")

    def prepare(self) -> Command:
        command = super().prepare()
        with self._config.open("a") as config:
            config.write(
                f"listeners.ssl.1 = 127.0.0.1:{self._tls_port}\n"
                f"ssl_options.cacertfile = {self._authority}\n"
                f"ssl_options.certfile = {self._pair.certificate}\n"
                f"ssl_options.keyfile = {self._pair.key}\n"
                "ssl_options.verify = verify_peer\n"
                "ssl_options.fail_if_no_peer_cert = false\n"
            )
        return command


class TlsServers:
    """Both servers, and their certificates."""

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        directory.joinpath("certificates").mkdir()
        self.certificates = Certificates(directory / "certificates")
        self._directory = directory
        self.mongod = TlsMongod(directory / "mongodb", ports["mongodb"], self.certificates)
        self.broker = TlsRabbitMQ(directory / "rabbitmq", ports, self.certificates)
        self._names = Epmd(find_rabbitmq(), ports["epmd"])
        self._running: list[Child] = []
        self.mongodb_url = f"mongodb://127.0.0.1:{ports['mongodb']}/?replicaSet=rs0&w=majority&tls=true"
        self.amqp_url = f"amqps://guest:guest@127.0.0.1:{ports['amqps']}/"

    async def start(self) -> None:
        for program in (self._names, self.broker, self.mongod):
            self._running.append(await start(program, self._directory / "logs", self._directory))

    async def stop(self) -> None:
        await asyncio.gather(*(child.end(20) for child in reversed(self._running)))

    async def present(self, *hosts: str, until: datetime | None = None) -> None:
        """Let both servers present new certificates to new connections."""
        self.certificates.issue("mongodb", *hosts, until=until)
        self.certificates.issue("rabbitmq", *hosts, until=until)

        def rotate(admin: Any) -> None:
            admin.command({"rotateCertificates": 1})

        assert await asyncio.to_thread(self.mongod.ask, rotate) is None
        await asyncio.to_thread(self.broker.control, "eval", "ssl:clear_pem_cache().")


@contextlib.asynccontextmanager
async def tls_servers() -> AsyncIterator[TlsServers]:
    """Start both servers in a temporary directory, and end them."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ordersaga-tests-")))
        stack.enter_context(acquire_lock(Layout(directory)))
        claims = stack.enter_context(PortClaims())
        ports = claims.claim_preferred(["mongodb", "amqp", "amqps", "distribution", "epmd"])
        servers = TlsServers(directory, ports)
        try:
            await servers.start()
            yield servers
        finally:
            await servers.stop()
