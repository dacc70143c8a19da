"""Write the files of deploy/kubernetes that are made from others, so that there is one source of each.

    python deploy/kubernetes/copies.py

Kustomize reads no file outside of its directory, and a PrometheusRule is no rules file. `make kubernetes` runs this; a
test fails while a copy is out of date.
"""

import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path("deploy/kubernetes")
ALERTS = ("deploy/prometheus/alerts.yml", "deploy/prometheus/objectives.yml")
BROKER_CONFIGURATION = "deploy/container/rabbitmq.conf"
BROKER_PLUGINS = "deploy/container/rabbitmq-plugins"

RULE = f"""\
# Made by `make kubernetes` from {" and ".join(ALERTS)}.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ordersaga
spec:
"""


def copies() -> dict[Path, str]:
    """Return the content of each file that is made from another, by its path in the repository."""
    rules = textwrap.indent(_without_second_key(*((ROOT / path).read_text() for path in ALERTS)), "  ")
    return {
        HERE / "components/monitoring/alerts.yaml": RULE + rules,
        HERE / "overlays/single/50-ordersaga.conf": (ROOT / BROKER_CONFIGURATION).read_text(),
        HERE / "overlays/single/enabled_plugins": (ROOT / BROKER_PLUGINS).read_text(),
    }


def _without_second_key(first: str, *others: str) -> str:
    """Return rules files as one: their groups, under the key of the first."""
    return first + "".join("\n" + other.partition("groups:\n")[2] for other in others)


if __name__ == "__main__":
    for path, content in copies().items():
        (ROOT / path).write_text(content)
