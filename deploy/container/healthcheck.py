"""Exit 0 if the service in this container answers a path with 200, else 1 with one line that says why not.

    python healthcheck.py /healthz

Over HTTPS where ORDERSAGA_TLS_CERT_FILE is set, with ORDERSAGA_TLS_CLIENT_CERT_FILE as the client's certificate. The
server's certificate is not verified: the connection does not leave the container.

The port is ORDERSAGA_HTTP_PORT; where that is not set, the services' default ports are tried in turn. Uses the
standard library alone, so that it starts fast: it runs every few seconds in every container.
"""

import http.client
import os
import ssl
import sys

DEFAULT_PORTS = (3008, 3009, 3010, 3011, 3014, 3012, 3013)
TIMEOUT_SECONDS = 4.0


def main(path: str) -> str | None:
    """Return None if one of the ports answers `path` with 200, else what is wrong with each."""
    configured = os.environ.get("ORDERSAGA_HTTP_PORT")
    problems = []
    for port in (int(configured),) if configured else DEFAULT_PORTS:
        problem = _ask(port, path)
        if problem is None:
            return None
        problems.append(problem)
    return "; ".join(problems)


def _ask(port: int, path: str) -> str | None:
    connection = _connection(port)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error}"
    finally:
        connection.close()
    return None if answer.status == http.client.OK else f"port {port}: {answer.status} {body}"


def _connection(port: int) -> http.client.HTTPConnection:
    if not os.environ.get("ORDERSAGA_TLS_CERT_FILE"):
        return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("ORDERSAGA_TLS_CLIENT_CERT_FILE"):
        context.load_cert_chain(certificate, os.environ.get("ORDERSAGA_TLS_CLIENT_KEY_FILE"))
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "/healthz"))
