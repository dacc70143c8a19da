"""Compares HTTP servers, event loops and ways to read a request on the order service's own work: placing an order.

    apt-get install wrk
    uv run --with granian python -m benchmarks.http --seconds 4

Each variant is a process on one core with wrk on the other (32 connections); the figure is the server's CPU time per
request, from /proc, and the requests per second. Storing and publishing are left out: they are the same for all.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PORT = 38_099
APPLICATION = "benchmarks.http_application:app"
SERVERS: dict[str, list[str]] = {
    "uvicorn, uvloop, httptools": ["uvicorn", APPLICATION, "--loop", "uvloop", "--http", "httptools"],
    "uvicorn, asyncio, h11": ["uvicorn", APPLICATION, "--loop", "asyncio", "--http", "h11"],
    "granian, uvloop": ["granian", "--interface", "asgi", "--loop", "uvloop", APPLICATION],
}
PATHS = {
    "as the order service does it": "/orders",
    "the same, with the request read by FastAPI": "/orders-by-framework",
    "bare ASGI, pydantic only": "/bare/",
}
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"userId":"u1","items":[{"productId":"p1","quantity":1,"price":10}],"totalAmount":10,"currency":"USD"}'
"""


def main() -> None:
    """Run every server with every path and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4)
    seconds = parser.parse_args().seconds
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        print(f"{'server':28} {'path':50} {'requests/s':>10} {'CPU µs/request':>15}")
        for name, command in SERVERS.items():
            _measure(name, command, script.name, seconds)


def _measure(name: str, command: list[str], script: str, seconds: int) -> None:
    program = [sys.executable, "-m", *command, "--port", str(PORT), *_quiet(command[0])]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(server.pid, {0})
    try:
        _wait_until_up()
        for label, path in PATHS.items():
            before = _cpu_seconds(server.pid)
            requests = _wrk(script, path, seconds)
            used = _cpu_seconds(server.pid) - before
            print(f"{name:28} {label:50} {requests / seconds:10.0f} {used / requests * 1e6:15.0f}", flush=True)
    finally:
        server.terminate()
        server.wait()


def _quiet(server: str) -> list[str]:
    return ["--no-access-log", "--log-level", "error"] if server == "uvicorn" else ["--no-access-log"]


def _wrk(script: str, path: str, seconds: int) -> int:
    url = f"http://127.0.0.1:{PORT}{path}"
    command = ["taskset", "-c", "1", "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", script, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(output)
    found = re.search(r"(\d+) requests in", output)
    if not found:
        raise RuntimeError(output)
    return int(found[1])


def _wait_until_up() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not come up")


def _cpu_seconds(pid: int) -> float:
    """CPU time of the process and its children, which granian has."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
