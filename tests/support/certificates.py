"""Certificates for tests: a certificate authority, and files that can be replaced."""

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

import trustme

LOCAL = ("localhost", "127.0.0.1")
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@dataclass
class Certificates:
    """An authority and its files in a directory."""

    directory: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        path = self.directory / "ca.pem"
        if not path.exists():
            self.authority.cert_pem.write_to_path(str(path))
        return path

    def issue(self, name: str, *hosts: str, until: dt.datetime | None = None) -> "Pair":
        """Write a certificate for these hosts, by default those of this machine; replaces one of the same name."""
        issued = self.authority.issue_cert(*(hosts or LOCAL), not_before=LONG_AGO, not_after=until)
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key", self.directory / f"{name}.both")
        pair.key.write_bytes(issued.private_key_pem.bytes())
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        pair.both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        return pair


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key, and one with both, which mongod reads."""

    certificate: Path
    key: Path
    both: Path

    def server_settings(self) -> dict[str, str]:
        """The settings of an HTTPS server."""
        return {"ORDERSAGA_TLS_CERT_FILE": str(self.certificate), "ORDERSAGA_TLS_KEY_FILE": str(self.key)}

    def client_settings(self) -> dict[str, str]:
        """The settings of a client that presents the certificate."""
        return {
            "ORDERSAGA_TLS_CLIENT_CERT_FILE": str(self.certificate),
            "ORDERSAGA_TLS_CLIENT_KEY_FILE": str(self.key),
        }
