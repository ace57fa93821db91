"""A Prometheus that scrapes a service answers each query of the dashboard, and knows the alerts."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mapsave.fleet import metrics

from tests.fleet.some_facts import SOME
from tests.kit import cli, ports, service, tree, wait
from tests.outside import grafana, prometheus
from tests.service.authority import Authority

DASHBOARD = json.loads(grafana.DASHBOARD.read_text())
RULES = prometheus.EXAMPLES / "mapsave.rules.yml"
CASES = tree.ROOT / "tests/outside/alerts.test.yml"
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
# What Grafana puts in place of its variables.
VARIABLES = {"$instance": ".*", "$guest": ".*", "$__rate_interval": "2m"}
# What Grafana's JSON Schemas demand of each kind of panel (Grafana Foundation SDK 0.0.18), which
# ``tests.outside.grafana`` checks all of.
OPTIONS = {
    "stat": {
        *("colorMode", "graphMode", "justifyMode", "orientation", "percentChangeColorMode"),
        *("reduceOptions", "showPercentChange", "textMode", "wideLayout"),
    },
    "table": {"frameIndex", "showHeader"},
    "timeseries": {"legend", "tooltip"},
}
LEGEND = {"calcs", "displayMode", "placement", "showLegend"}


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    prometheus.need()


@dataclass(frozen=True)
class Demo:
    """A service whose guests saved, restored and failed, and the Prometheus that saw it."""

    mapsaved: service.Service
    server: prometheus.Prometheus


def _site(directory: Path, authority: Authority, port: int) -> cli.Site:
    listen = authority.listen(port, readers=["prometheus.example.org"])
    site = cli.Site(directory)
    site.settings = {"service": {"listen": listen}}
    for name in ("db", "web"):
        site.add_guest(name, emulator={"memory": "8M"})
    site.add_guest("gone", directory / "gone.qmp")
    save = {"then": "resume"}
    site.add_job("nightly", guests=["db"], save=save, schedule={"cron": "0 3 * * *"})
    site.add_job("broken", guests=["gone"], save=save, schedule={"cron": "0 4 * * *"})
    return site


def _work(mapsaved: service.Service, name: str) -> None:
    """Save, restore, verify, and fail."""
    begun = [
        mapsaved.begin(kind="job", job="nightly"),
        mapsaved.begin(kind="job", job="broken"),
        mapsaved.begin(kind="save", guest="gone"),
    ]
    mapsaved.done(kind="save", guest="web", save={"image": name})
    mapsaved.done(kind="verify", image=name)
    for each in begun:
        mapsaved.ended(each["id"])
    mapsaved.done(kind="restore", image=name)  # the last, whose scrape has the others too


@contextlib.contextmanager
def scraped(directory: Path) -> Iterator[Demo]:
    authority, port = Authority(directory / "ca"), ports.reserved()
    target = f"127.0.0.1:{port}"
    with (
        service.running(_site(directory / "site", authority, port)) as mapsaved,
        prometheus.running(directory / "prometheus", target, authority) as server,
    ):
        done = 'mapsave_operations_total{kind="restore", outcome="done"}'
        # A rate needs a series that was there before what it counts: all of it is done twice.
        for count, name in enumerate(("first", "second"), 1):
            _work(mapsaved, name)
            wait.until(
                lambda count=count: [value for _, value in server.ask(done)] == [count],
                what=f"scrape {count}",
            )
        yield Demo(mapsaved, server)


def test_a_service_that_is_scraped(tmp_path: Path) -> None:
    """One for all that needs a server: each worker of the tests would start its own."""
    with scraped(tmp_path) as demo:
        assert_each_query_of_the_dashboard_has_an_answer(demo)
        assert_what_is_shown_is_what_was_done(demo)
        assert_alerts_fire_for_what_failed_and_nothing_else(demo)
        answer = demo.mapsaved.request("GET", "/metrics")
        assert prometheus.promtool("check", "metrics", given=answer.body.decode()) == ""


def assert_each_query_of_the_dashboard_has_an_answer(demo: Demo) -> None:
    queries = QUERIES
    for name, value in VARIABLES.items():
        queries = [query.replace(name, value) for query in queries]
    assert "$" not in " ".join(queries)
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
        assert found is not None, variable
        assert found[2] in demo.server.ask(found[1].replace("$instance", ".*"))[0][0]
    answers: list[tuple[dict[str, str], float]] = []
    for query in queries:
        answers += wait.until(lambda query=query: demo.server.numbers(query), what=query)
    assert {labels.get("job") for labels, _ in answers} == {None, "mapsave"}


def assert_what_is_shown_is_what_was_done(demo: Demo) -> None:
    def values(query: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(value for key, value in sorted(labels.items()) if key != "instance"): value
            for labels, value in demo.server.ask(query)
        }

    failures = values("sum by (kind, error) (mapsave_failures_total)")
    assert failures == {("check.unreachable", "job"): 2, ("check.unreachable", "save"): 4}
    images = values("sum by (state) (mapsave_images)")
    assert images["restored",] in (1, 2)  # which is looked up every 15 seconds at most
    finished = values('sum by (kind) (mapsave_operations_total{outcome="done"} > 0)')
    assert finished == {("job",): 2, ("restore",): 2, ("save",): 4, ("verify",): 2}
    never = values("mapsave_last_success_timestamp_seconds == 0")
    assert [labels[1:] for labels in never] == [("broken", "gone", "mapsave")]


def assert_alerts_fire_for_what_failed_and_nothing_else(demo: Demo) -> None:
    """GuestNotSaved for the guest that was never saved; other alerts wait, or have no reason."""
    wanted = {"GuestNotSaved", "JobFailed", "OperationsFail"}
    wait.until(lambda: demo.server.alerts() == wanted, what=f"alerts {wanted}")


def test_promtool_has_nothing_against_rules_and_configuration() -> None:
    assert "SUCCESS" in prometheus.promtool("check", "rules", "--lint-fatal", str(RULES))
    configuration = str(prometheus.EXAMPLES / "prometheus.yml")
    prometheus.promtool("check", "config", "--syntax-only", configuration)


def test_promtool_has_nothing_against_the_series_of_a_fleet() -> None:
    series = metrics.text(SOME, leads=True).decode()
    assert "mapsave_fleet_led" in series
    assert prometheus.promtool("check", "metrics", given=series) == ""


def test_each_alert_fires_when_it_is_due_and_not_before() -> None:
    assert "SUCCESS" in prometheus.promtool("test", "rules", str(CASES))
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert set(cases) == {(rule["alert"], due) for rule in group["rules"] for due in (True, False)}


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    numbers = [each["id"] for each in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        area = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not area & taken, panel["title"]
        taken |= area


def test_each_panel_has_what_grafana_demands_of_its_kind() -> None:
    for panel in PANELS:
        assert OPTIONS[panel["type"]] <= set(panel["options"]), panel["title"]
        if "legend" in panel["options"]:
            assert set(panel["options"]["legend"]) >= LEGEND, panel["title"]


def test_the_dashboard_shows_each_series_that_is_documented() -> None:
    document = (tree.ROOT / "docs/metrics.md").read_text()
    documented = set(re.findall(r"^\| `((?:mapsave|process)_\w+)` \|", document, re.M))
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    left_out = {
        "process_virtual_memory_bytes",
        "mapsave_job_last_run_timestamp_seconds",
        "mapsave_image_store_exclusive_bytes",  # is not there before five minutes are over
    }
    # The dashboard is of a service. Those of a fleet are in tests/fleet/test_metrics.py.
    documented = {name for name in documented if not name.startswith("mapsave_fleet_")}
    assert {name for name in documented if name not in shown} == left_out
    assert all(panel["description"] for panel in PANELS)
