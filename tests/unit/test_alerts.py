"""Alerts fire when they should, dashboards query existing metrics, and every alert has its page."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from operations.cli import COMMANDS
from shared.services import PROCESSES, SERVICES, SIMULATOR
from shared.topology import DEAD_LETTERS, INBOXES
from tests.support.monitoring import (
    ALERT_TESTS,
    DASHBOARDS,
    OF_SERVERS,
    OF_THE_CLIENT,
    PROMETHEUS_OWN,
    ROOT,
    alert_rules,
    declared_metrics,
    expressions,
    names_in,
    panels,
    promtool,
)

METRICS = declared_metrics()
RULES = {rule["alert"]: rule for rule in alert_rules()}
CASES = [
    case
    for file in ALERT_TESTS
    for test in yaml.safe_load(file.read_text())["tests"]
    for case in test["alert_rule_test"]
]
OF_OBJECTIVES = [{"alertname": f"{name}BudgetBurning"} for name in ("Placement", "Outcome", "Latency")]
LINK = "{{ with $externalLabels.docs }}{{ . }}/{{ end }}"
"""What makes a link of the path of a page, where the repository can be read."""
RUNBOOKS = ROOT / "docs/runbooks"
CONFIGURATIONS = ("prometheus.yml", "prometheus-compose.yml")
SECTIONS = ("What it means", "Impact", "Diagnosis", "Fix", "Verify")
ALERTMANAGER = ROOT / "deploy/alertmanager/alertmanager.yml"
OF_EVERY_SERVICE = [{"alertname": "RequestsFailing", "service": name} for name in SERVICES]
STANDING_STILL = [{"alertname": name} for name in ("BacklogOld", "SagasStuck", "CompensationsUnsettled")]
OUTAGES: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "mongodb": (
        {"alertname": "DependencyDown", "dependency": "mongodb"},
        [
            *OF_EVERY_SERVICE,
            *STANDING_STILL,
            {"alertname": "ConsumerDown", "queue": "order.inbox"},
            {"alertname": "NotReady", "service": "console", "dependency": "dead letters"},
            {"alertname": "ObservationStale", "source": "orders"},
            {"alertname": "TransactionsFailing"},
            {"alertname": "OrdersFailing"},
            {"alertname": "ServerLost", "instance": "mongo:27017"},
            *OF_OBJECTIVES,
        ],
    ),
    "rabbitmq": (
        {"alertname": "DependencyDown", "dependency": "rabbitmq"},
        [
            *({"alertname": "ConsumerDown", "queue": queue} for queue in (*INBOXES, DEAD_LETTERS)),
            *({"alertname": "PublishFailing", "service": name} for name in SERVICES),
            *STANDING_STILL,
            {"alertname": "NotReady", "service": "console", "dependency": "dead letters"},
            {"alertname": "ObservationStale", "source": "queues"},
            {"alertname": "OrdersFailing"},
            {"alertname": "ServerLost", "instance": "rabbitmq:15692"},
            *OF_OBJECTIVES,
        ],
    ),
    "a broker that takes messages": (
        {"alertname": "BrokerBlocked", "instance": "rabbitmq:15692", "resource": "memory"},
        [
            *({"alertname": "PublishFailing", "service": name} for name in SERVICES),
            *STANDING_STILL,
            {"alertname": "OrdersFailing"},
            {"alertname": "OutcomeBudgetBurning"},
        ],
    ),
    **{
        name: (
            {"alertname": "ServiceDown", "service": name},
            [{"alertname": "ConsumerDown", "queue": f"{name}.inbox"}, *STANDING_STILL],
        )
        for name in SERVICES
        if name != "console"
    },
    "console": (
        {"alertname": "ServiceDown", "service": "console"},
        [
            {"alertname": "ConsumerDown", "queue": "operations.inbox"},
            {"alertname": "ConsumerDown", "queue": DEAD_LETTERS},
            {"alertname": "ObservationStale"},
        ],
    ),
}
"""By what is away: the alert about it, and those that follow from it."""


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_prometheus_takes_the_configuration_and_the_rules(tmp_path: Path, name: str) -> None:
    directory = shutil.copytree(ROOT / "deploy/prometheus", tmp_path / "prometheus")
    key = directory / "ordersaga.key"
    key.write_text("osk_\n")  # the operator creates it
    configuration = (directory / name).read_text()
    (directory / name).write_text(configuration.replace("/run/ordersaga/api-key", str(key)))
    promtool("check", "config", directory / name)


def test_alerts_fire_when_they_should_and_are_silent_otherwise(tmp_path: Path) -> None:
    """The same as `promtool test rules deploy/prometheus/*.test.yml`, at a tenth of its cost."""
    files = [file for tests in ALERT_TESTS for file in with_only_the_rules_it_needs(tests, tmp_path)]
    promtool("test", "rules", *files)


def with_only_the_rules_it_needs(tests: Path, directory: Path) -> Iterator[Path]:
    """Write each test into a file of its own: promtool evaluates all rules of a file at every step of every test."""
    document = yaml.safe_load(tests.read_text())
    (rules,) = document["rule_files"]
    groups = yaml.safe_load((tests.parent / rules).read_text())["groups"]
    for number, test in enumerate(document["tests"]):
        asserted = {case["alertname"] for case in test["alert_rule_test"]}
        needed = [group | {"rules": [rule for rule in group["rules"] if rule["alert"] in asserted]} for group in groups]
        own_rules = directory / f"{tests.stem}-{number}.rules.yml"
        own_rules.write_text(yaml.safe_dump({"groups": needed}))
        file = directory / f"{tests.stem}-{number}.yml"
        file.write_text(yaml.safe_dump(document | {"rule_files": [own_rules.name], "tests": [test]}))
        yield file


@pytest.mark.parametrize("alert", RULES)
def test_every_alert_is_seen_to_fire_and_to_be_silent(alert: str) -> None:
    cases = [case for case in CASES if case["alertname"] == alert]
    assert any(case.get("exp_alerts") for case in cases)
    assert any(not case.get("exp_alerts") for case in cases)


@pytest.mark.parametrize("alert", RULES)
def test_every_alert_says_what_is_wrong_and_has_its_page(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
    page = runbook(rule).read_text()
    assert page.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(SECTIONS)
    assert rule["labels"]["severity"] in page.split("## ")[0]


def runbook(rule: dict[str, Any]) -> Path:
    url: str = rule["annotations"]["runbook_url"]
    assert url.startswith(LINK), "it cannot become a link"
    return ROOT / url.removeprefix(LINK)


def test_commands_that_pages_name_exist() -> None:
    for page in RUNBOOKS.glob("*.md"):
        named = re.findall(r"(?:`|^\$ )ordersaga ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
        assert set(named) <= COMMANDS.keys(), page.name


def test_every_page_says_how_it_is_done_in_containers() -> None:
    for page in RUNBOOKS.glob("*.md"):
        assert "(../containers.md)" in page.read_text(), page.name
    assert (ROOT / "docs/containers.md").exists()


def test_numbers_in_the_texts_of_alerts_are_rounded() -> None:
    """Without a format, the number of digits depends on the version of Prometheus."""
    for rule in RULES.values():
        for text in rule["annotations"].values():
            for shown in re.findall(r"\{\{([^}]*\$value[^}]*)\}\}", text):
                assert re.search(r'printf "%\.0f" \$value|\$value \| humanizeDuration', shown), rule["alert"]


def test_every_page_is_about_an_alert() -> None:
    named = {runbook(rule) for rule in RULES.values()}
    assert named == set(RUNBOOKS.glob("*.md"))


# --- What Alertmanager sends of it. ---


@pytest.mark.parametrize("away", OUTAGES)
def test_an_outage_sends_one_notification_about_its_cause(away: str) -> None:
    cause, consequences = OUTAGES[away]
    firing = [cause, *consequences]
    assert [alert for alert in firing if not _inhibited(alert, firing)] == [cause]


def test_failing_orders_are_heard_of_while_no_more_than_a_service_is_down() -> None:
    firing = [{"alertname": "ServiceDown", "service": "payment"}, {"alertname": "OrdersFailing"}]
    assert not any(_inhibited(alert, firing) for alert in firing)


def test_an_objective_is_heard_of_unless_another_alert_says_what_fails() -> None:
    assert not any(_inhibited(alert, OF_OBJECTIVES) for alert in OF_OBJECTIVES)
    firing = [{"alertname": "RequestsFailing", "service": "order"}, {"alertname": "OrdersFailing"}, *OF_OBJECTIVES]
    assert [alert for alert in OF_OBJECTIVES if not _inhibited(alert, firing)] == [OF_OBJECTIVES[2]]


def test_what_one_service_does_is_heard_of_while_another_is_down() -> None:
    firing = [
        {"alertname": "ServiceDown", "service": "payment"},
        {"alertname": "RequestsFailing", "service": "order"},
        {"alertname": "ConsumerDown", "queue": "order.inbox"},
    ]
    assert not any(_inhibited(alert, firing) for alert in firing)


def test_alertmanager_names_alerts_that_exist() -> None:
    named = re.findall(r'alertname=~?"([^"]+)"', ALERTMANAGER.read_text())
    assert {name for names in named for name in names.split("|")} <= RULES.keys()


def test_alertmanager_takes_its_configuration() -> None:
    command = ["amtool", "check-config", str(ALERTMANAGER)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def _inhibited(alert: dict[str, str], firing: list[dict[str, str]]) -> bool:
    """Return whether Alertmanager mutes an alert while the others fire."""
    return any(
        _matches(alert, rule["target_matchers"])
        and any(
            _matches(source, rule["source_matchers"])
            and all(source.get(label) == alert.get(label) for label in rule.get("equal", ()))
            for source in firing
            if source is not alert
        )
        for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    )


def _matches(alert: dict[str, str], matchers: list[str]) -> bool:
    return all(_satisfies(alert, matcher) for matcher in matchers)


def _satisfies(alert: dict[str, str], matcher: str) -> bool:
    found = re.fullmatch(r'(\w+)(=~|!~|!=|=)"(.*)"', matcher)
    assert found, matcher
    label, operator, wanted = found.groups()
    has = alert.get(label, "")
    equal = re.fullmatch(wanted, has) is not None if operator.endswith("~") else has == wanted
    return equal is not operator.startswith("!")


@pytest.mark.parametrize("alert", RULES)
def test_what_an_alert_asks_for_is_exported(alert: str) -> None:
    assert names_in(RULES[alert]["expr"]) <= _exported()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_service_is_scraped_at_its_port(name: str) -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["scrape_configs"]
    (job,) = (job for job in jobs if job["job_name"] == "ordersaga")
    scraped = {
        target["labels"]["service"]: int(address.rpartition(":")[2])
        for target in job.get("static_configs", ())
        for address in target["targets"]
    } | {name: one["port"] for one in job.get("dns_sd_configs", ()) for name in one["names"]}
    assert scraped == {name: kind.port for name, kind in PROCESSES.items() if name != SIMULATOR.name}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_what_a_dashboard_asks_for_is_exported(dashboard: Path) -> None:
    exported = _exported()
    for expression in expressions(dashboard):
        unknown = {name for name in names_in(expression) - exported if not OF_THE_CLIENT.fullmatch(name)}
        assert not unknown, expression


def test_prometheus_understands_what_dashboards_ask_for(tmp_path: Path) -> None:
    asked = [expression for dashboard in DASHBOARDS for expression in expressions(dashboard)]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    checked = tmp_path / "panels.yml"
    checked.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", checked)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_shows(dashboard: Path) -> None:
    document = json.loads(dashboard.read_text())
    assert document["uid"] == f"ordersaga-{dashboard.stem}"
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        # The one that is chosen at the top: a dashboard must not depend on what a data source is called.
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    _assert_nothing_overlaps([panel["gridPos"] for panel in document["panels"]])


def test_dashboards_show_every_metric() -> None:
    shown = {name for dashboard in DASHBOARDS for expression in expressions(dashboard) for name in names_in(expression)}
    assert shown >= OF_SERVERS, "the list has what nobody asks for"
    unseen = [metric.name for metric in METRICS.values() if not metric.series & shown]
    assert unseen == []


def test_names_are_distinguished_from_the_words_around_them() -> None:
    expression = (
        'histogram_quantile(0.95, sum by (le, queue) (rate(a_seconds_bucket{queue=~"x{2}|b_total"}[1m]))) > 1.5e3 '
        "and on (queue) c:d:rate5m offset 5m or vector(0)"
    )
    assert names_in(expression) == {"a_seconds_bucket", "c:d:rate5m"}


def _exported() -> set[str]:
    return PROMETHEUS_OWN.union(OF_SERVERS, *(metric.series for metric in METRICS.values()))


def _assert_nothing_overlaps(places: list[dict[str, Any]]) -> None:
    taken: set[tuple[int, int]] = set()
    for place in places:
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in _rows(place)}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def _rows(place: dict[str, Any]) -> range:
    return range(place["y"], place["y"] + place["h"])
