"""Stands in for Grafana: reads its settings, data sources and dashboards where Grafana does, and says what it found.

It answers /api/health, /api/search, /api/datasources and /api/datasources/proxy/uid/<uid>/… as Grafana 12 does, for the
user `admin`. It ends at once if it cannot read a file, or cannot write to its own directory.
"""

import base64
import http.server
import json
import os
import secrets
import string
import urllib.request
from pathlib import Path
from typing import Any

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
DATA = Path("/var/lib/grafana")


def main() -> None:
    """Serve until the container ends."""
    password = Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text()
    Path(os.environ["GF_SECURITY_SECRET_KEY__FILE"]).read_text()
    (DATA / "grafana.db").write_text("a stand-in\n")
    sources = {one["uid"]: one for one in provisioned("datasources", "datasources")}
    dashboards = [
        json.loads(file.read_text())
        for provider in provisioned("dashboards", "providers")
        for file in sorted(Path(provider["options"]["path"]).glob("*.json"))
    ]
    found = [{"uid": each["uid"], "title": each["title"], "type": "dash-db"} for each in dashboards]
    wanted = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/health":
                self.answer(200, {"database": "ok"})
            elif not secrets.compare_digest(self.headers.get("Authorization", ""), wanted):
                self.answer(401, {"message": "Unauthorized"})
            elif self.path.partition("?")[0] == "/api/search":
                self.answer(200, found)
            elif self.path == "/api/datasources":
                self.answer(200, list(sources.values()))
            else:
                *_, uid, rest = self.path.split("/", 5)
                uid, _, rest = rest.partition("/")
                with urllib.request.urlopen(f"{sources[uid]['url']}/{rest}", timeout=10) as asked:
                    self.answer(asked.status, json.load(asked))

        def answer(self, status: int, content: Any) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    http.server.ThreadingHTTPServer(("", 3000), Handler).serve_forever()


def provisioned(folder: str, key: str) -> list[dict[str, Any]]:
    """Return what the files of a folder declare, with variables of the environment put in."""
    files = sorted((PROVISIONING / folder).glob("*.yml"))
    texts = (string.Template(file.read_text()).substitute(os.environ) for file in files)
    return [one for text in texts for one in yaml.safe_load(text)[key]]


if __name__ == "__main__":
    main()
