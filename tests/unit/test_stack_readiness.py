"""Readiness probes, for all URLs that may be configured for a service."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from operations.stack.services import probe_readiness


class Proxy(BaseHTTPRequestHandler):
    """A proxy that serves one service below a path and requires a login."""

    def do_GET(self) -> None:
        login = self.headers["Authorization"] == "Basic dTpzQGNyZXQ="  # u:s@cret
        self.send_response(200 if login and self.path == "/shop/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_service_behind_a_proxy_with_a_login_and_a_path_is_asked_there(port: int, end: str) -> None:
    assert probe_readiness(f"http://u:s%40cret@127.0.0.1:{port}/shop{end}") is None
    assert "/readyz answers 404" in (probe_readiness(f"http://127.0.0.1:{port}/shop{end}") or "")


def test_https_is_used_for_https_urls(port: int) -> None:
    reason = probe_readiness(f"https://127.0.0.1:{port}")
    assert reason == f"https://127.0.0.1:{port}: it does not speak TLS on this port"


def test_a_password_is_not_printed() -> None:
    missing = probe_readiness("http://u:s3cret@127.0.0.1:1/")
    assert missing == "nothing answers on http://u:***@127.0.0.1:1/ yet: connection refused"
