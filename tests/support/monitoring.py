"""The exported metrics, and those that dashboards and alerts use."""

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from shared.services import SERVICES

ROOT = Path(__file__).parents[2]
RULES = [ROOT / "deploy/prometheus" / name for name in ("alerts.yml", "objectives.yml")]
ALERT_TESTS = sorted((ROOT / "deploy/prometheus").glob("*.test.yml"))
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))

PROMETHEUS_OWN = {"up", "ALERTS"}
"""Series that Prometheus creates itself."""
OF_THE_CLIENT = re.compile(r"(process|python)_\w+")
"""Series that the client library exports for every process."""

OF_RABBITMQ = {
    "rabbitmq_alarms_free_disk_space_watermark",
    "rabbitmq_alarms_memory_used_watermark",
    "rabbitmq_connections",
    "rabbitmq_disk_space_available_bytes",
    "rabbitmq_disk_space_available_limit_bytes",
    "rabbitmq_process_resident_memory_bytes",
    "rabbitmq_queue_messages_ready",
    "rabbitmq_queue_messages_unacked",
    "rabbitmq_resident_memory_limit_bytes",
}
"""Series of the plugin `rabbitmq_prometheus`, as 3.10.8 serves them at /metrics; tests/compose asks a node for each."""
OF_MONGODB = {
    "mongodb_dbstats_fsTotalSize",
    "mongodb_dbstats_fsUsedSize",
    "mongodb_dbstats_indexSize",
    "mongodb_dbstats_storageSize",
    "mongodb_rs_members_health",
    "mongodb_rs_members_optimeDate",
    "mongodb_ss_connections",
    "mongodb_ss_globalLock_currentQueue",
    "mongodb_ss_opcounters",
    "mongodb_ss_wt_cache_bytes_currently_in_the_cache",
    "mongodb_ss_wt_cache_maximum_bytes_configured",
    "mongodb_ss_wt_cache_tracked_dirty_bytes_in_the_cache",
    "mongodb_up",
}
"""Series of percona/mongodb_exporter 0.47.2, which makes the names of what `getDiagnosticData` and `dbStats` answer by
the rules in its exporter/metrics.go; `mongodb_up` is from exporter/general_collector.go."""
OF_SERVERS = OF_RABBITMQ | OF_MONGODB
"""What the exporters of the profile monitoring serve, as far as alerts and dashboards ask for it."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Metric(NamedTuple):
    """A metric as declared; `name` is the queried name, with _total for a counter."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> set[str]:
        """The names of its samples."""
        suffixes = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return {self.name + suffix for suffix in suffixes}


def declared_metrics() -> dict[str, Metric]:
    """All metrics of all programs, by name.

    Call it while the tests are collected: later on, libraries that a test has used in this process may have registered
    theirs too (stamina counts the retries of the client's package, which no program uses).
    """
    mains = (f"{service.package}.__main__" for service in SERVICES.values())
    for module in (*mains, "operations.metrics", "order_service.rpc.calls"):
        importlib.import_module(module)
    wrappers = [collector for collector in REGISTRY._collector_to_names if isinstance(collector, MetricWrapperBase)]
    return {metric.name: metric for metric in map(_metric, wrappers)}


def _metric(wrapper: MetricWrapperBase) -> Metric:
    name = wrapper._name + ("_total" if wrapper._type == "counter" else "")
    return Metric(name, str(wrapper._type), tuple(wrapper._labelnames), wrapper._documentation)


def alert_rules() -> list[dict[str, Any]]:
    """The alerts, with their annotations."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard without the headings."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def expressions(dashboard: Path) -> Iterator[str]:
    """The queries of a dashboard's panels, with a fixed interval in place of Grafana's."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LEFT_OUT = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)")
_NAME = re.compile(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "group_left", "group_right", "offset"}


def names_in(expression: str) -> set[str]:
    """The series in an expression."""
    rest = _LEFT_OUT.sub(" ", _STRING.sub(" ", expression))
    without_numbers = re.sub(r"\b\d[\w.]*", " ", rest)
    return set(_NAME.findall(without_numbers)) - _WORDS


def promtool(*arguments: str | Path, given: str = "") -> None:
    """Run promtool on its input; fail with its output."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is missing: run `scripts/setup tests`, or as root apt-get install prometheus")
    command = [program, *map(str, arguments)]
    run = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


async def scrape(client: httpx.AsyncClient, url: str) -> Samples:
    """Scrape a process like Prometheus."""
    response = await client.get(f"{url}/metrics")
    assert response.status_code == 200, response.text
    return samples_of(response.text)


def samples_of(text: str) -> Samples:
    """The samples of an exposition by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples with these labels; 0 without any."""
    wanted = labels.items()
    return sum(number for (found, has), number in samples.items() if found == name and wanted <= has)


def counted(name: str, **labels: str) -> float:
    """The value of a series in this process, 0 if it does not exist."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
