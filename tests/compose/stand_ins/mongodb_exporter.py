#!/usr/bin/python3
"""Stands in for percona/mongodb_exporter: asks MongoDB what it asks, and names what it gets by the same rules.

Only as far as alerts and dashboards need it: numbers in documents of `getDiagnosticData` and `dbStats`, without
histograms. For Python 3.11 and PyMongo 3.11 of Debian 12.
"""

import argparse
import datetime as dt
import http.server
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pymongo
from pymongo.errors import PyMongoError

SHORTER = (
    ("serverStatus.wiredTiger", "ss_wt"),
    ("serverStatus", "ss"),
    ("replSetGetStatus", "rs"),
)
LABELS = {
    "serverStatus.connections.": "conn_type",
    "serverStatus.globalLock.currentQueue.": "count_type",
    "serverStatus.opcounters.": "legacy_op_type",
}
Sample = tuple[str, dict[str, str], float]


def main() -> None:
    """Serve until the container ends."""
    parser = argparse.ArgumentParser()
    for flag in ("diagnosticdata", "dbstats"):
        parser.add_argument(f"--collector.{flag}", dest=flag, action="store_true")
    parser.add_argument("--mongodb.connect-timeout-ms", dest="timeout", type=int, default=5000)
    given = parser.parse_args()
    urls = os.environ["MONGODB_URI"].split(",")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lines = [line for url in urls for line in scrape(url, given)] if self.path == "/scrapeall" else []
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write("".join(f"{line}\n" for line in lines).encode())

    http.server.ThreadingHTTPServer(("", 9216), Handler).serve_forever()


def scrape(url: str, given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines about one member."""
    instance = {"instance": urlsplit(url).netloc.rpartition("@")[2]}
    client: Any = pymongo.MongoClient(url, directConnection=True, serverSelectionTimeoutMS=given.timeout)
    try:
        samples = list(collect(client, given))
    except PyMongoError as error:
        print(f"cannot ask {instance['instance']}: {str(error)[:200]}", flush=True)  # noqa: T201
        samples = [("mongodb_up", {"cluster_role": ""}, 0.0)]
    finally:
        client.close()
    for name, labels, value in samples:
        written = ",".join(f'{key}="{text}"' for key, text in {**labels, **instance}.items())
        yield f"{name}{{{written}}} {value}"


def collect(client: Any, given: argparse.Namespace) -> Iterator[Sample]:
    """Yield what a member says."""
    client.admin.command("ping")
    yield "mongodb_up", {"cluster_role": "mongod"}, 1.0
    if given.diagnosticdata:
        yield from named("", client.admin.command("getDiagnosticData")["data"], {})
        client.admin.command("getCmdLineOpts")
    if given.dbstats:
        for database in client.list_database_names():
            yield from named("dbstats.", client[database].command("dbStats"), {"database": database})


def named(prefix: str, document: dict[str, Any], labels: dict[str, str]) -> Iterator[Sample]:
    """Yield the numbers of a document, named by their path."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from named(f"{prefix}{key}.", value, labels)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict) and "name" in item:
                    member = {"member_idx": item["name"], "member_state": item.get("stateStr", "")}
                    yield from named(f"{prefix}{key}.", item, {**labels, **member})
        elif isinstance(value, dt.datetime):
            yield name_of(prefix + key), labels, value.replace(tzinfo=dt.UTC).timestamp() * 1000
        elif isinstance(value, (bool, int, float)):
            label = LABELS.get(prefix)
            path, more = (prefix, {label: key}) if label else (prefix + key, {})
            yield name_of(path), {**labels, **more}, float(value)


def name_of(path: str) -> str:
    """Return the name of a metric."""
    for long, short in SHORTER:
        if path.startswith(f"{long}."):
            path = short + path.removeprefix(long)
            break
    return "mongodb_" + re.sub(r"[^a-zA-Z0-9_]+", "_", path).strip("_")


if __name__ == "__main__":
    main()
