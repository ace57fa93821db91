"""Metrics: what the series say, that Prometheus can read them, and the file for node_exporter."""

import asyncio
import contextlib
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

import mapsave
import pytest
import yaml
from mapsave.client.requests import KINDS
from mapsave.service.metrics import metrics as metrics_module
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.metrics.scrape import JobState
from prometheus_client import parser

from tests.kit import tree
from tests.service.observing import State, families, key, samples, saved

RULES = tree.ROOT / "examples/prometheus/mapsave.rules.yml"
OF_A_FLEET = "mapsave_fleet_"  # which schedulers write: tests/fleet/test_metrics.py
DOCUMENT = tree.ROOT / "docs/metrics.md"


async def test_a_save_is_in_all_its_series(state: State) -> None:
    metrics = Metrics(state.sources())
    metrics.began("save")
    metrics.ended(saved())
    metrics.ended(saved(ended=1500.0))
    found = await samples(metrics)
    it = {"guest": "db", "job": "nightly"}
    assert found[key("operations_begun_total", kind="save")] == 1
    assert found[key("operations_total", kind="save", outcome="done")] == 2
    assert found[key("save_bytes_total", **it)] == 2 << 30
    assert found[key("save_rate_bytes_per_second", **it)] == 2_000_000
    assert found[key("save_duration_seconds_count", **it)] == 2
    assert found[key("save_duration_seconds_sum", **it)] == 6
    assert found[key("save_duration_seconds_bucket", **it, le="2.5")] == 0
    assert found[key("save_duration_seconds_bucket", **it, le="5.0")] == 2
    assert found[key("save_downtime_seconds_sum", **it)] == pytest.approx(0.4)


async def test_a_guest_that_did_not_run_has_no_downtime(state: State) -> None:
    metrics = Metrics(state.sources())
    metrics.ended(saved(result={"duration_s": 1.0, "downtime_s": 0.0}))
    names = {name for name, _ in await samples(metrics)}
    assert "mapsave_save_duration_seconds_count" in names
    assert "mapsave_save_downtime_seconds_count" not in names


async def test_failures_are_counted_by_error_and_are_no_success(state: State) -> None:
    metrics = Metrics(state.sources())
    failed = {"state": "failed", "result": None, "job": None}
    metrics.ended(saved(**failed, error={"id": "check.no_room"}))
    metrics.ended(saved(**failed, error={"id": "check.no_room"}))
    metrics.ended(saved(**failed, error=None))
    metrics.ended(saved(**{**failed, "state": "cancelled"}, error={"id": "interrupted"}))
    found = await samples(metrics)
    assert found[key("failures_total", kind="save", error="check.no_room")] == 2
    assert found[key("failures_total", kind="save", error="internal")] == 1
    assert key("failures_total", kind="save", error="interrupted") not in found
    assert found[key("operations_total", kind="save", outcome="failed")] == 3
    assert found[key("operations_total", kind="save", outcome="cancelled")] == 1
    assert not [name for name, _ in found if name == "mapsave_last_success_timestamp_seconds"]
    assert not [name for name, _ in found if name.startswith("mapsave_save_duration")]


async def test_a_restore_without_a_clock_of_its_own_lasts_from_start_to_end(state: State) -> None:
    metrics = Metrics(state.sources())
    metrics.ended(saved(kind="restore", result={}, started=10.0, ended=14.5))
    metrics.ended(saved(kind="restore", result=None, started=None))
    found = await samples(metrics)
    assert found[key("restore_duration_seconds_sum")] == 4.5
    assert found[key("restore_duration_seconds_count")] == 1


async def test_what_has_not_happened_yet_is_zero_not_missing(state: State) -> None:
    found = await samples(Metrics(state.sources()))
    for kind in KINDS:
        assert found[key("operations_running", kind=kind)] == 0
        assert found[key("operations_begun_total", kind=kind)] == 0
        for outcome in ("done", "failed", "cancelled"):
            assert found[key("operations_total", kind=kind, outcome=outcome)] == 0
    assert found[key("restore_duration_seconds_count")] == 0


async def test_gauges_say_what_is_now(state: State) -> None:
    metrics = Metrics(state.sources())
    await samples(metrics)
    state.running, state.pending, state.journal, state.listeners = {"save": 3}, 7, 8192, 2
    found = await samples(metrics)
    assert found[key("operations_running", kind="save")] == 3
    assert found[key("operations_pending")] == 7
    assert found[key("journal_bytes")] == 8192
    assert found[key("event_listeners")] == 2
    assert found[key("build_info", version=mapsave.__version__)] == 1


async def test_a_source_that_fails_costs_only_its_own_series(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    def gone() -> int:
        raise FileNotFoundError("journal.db")

    metrics = Metrics(state.sources(journal_bytes=gone))
    await samples(metrics)
    found = await samples(metrics)
    assert key("journal_bytes") not in found
    assert found[key("operations_pending")] == 0
    assert [each.getMessage() for each in caplog.records] == ["no metrics about journal_bytes"]


async def test_last_success_of_those_that_are_due(state: State) -> None:
    metrics = Metrics(state.sources())
    state.jobs = {
        "nightly": JobState(2_000_000.0, ("db", "web", "new")),
        "by-hand": JobState(None, ("db",)),
    }
    metrics.seed(
        [
            ("db", "nightly", 500.0),
            ("web", "nightly", 400.0),
            ("old", "nightly", 300.0),
            ("db", "removed", 200.0),
            ("old", None, 100.0),
        ]
    )
    metrics.ended(saved(ended=1234.0))
    metrics.seed([("db", "nightly", 600.0)])  # an older one does not come back
    found = await samples(metrics)
    name = "mapsave_last_success_timestamp_seconds"
    assert {labels: value for (of, labels), value in found.items() if of == name} == {
        frozenset({("guest", "db"), ("job", "nightly")}): 1234,
        frozenset({("guest", "web"), ("job", "nightly")}): 400,
        frozenset({("guest", "new"), ("job", "nightly")}): 0,
        frozenset({("guest", "old")}): 100,
    }
    assert found[key("job_next_run_timestamp_seconds", job="nightly")] == 2_000_000
    assert key("job_next_run_timestamp_seconds", job="by-hand") not in found


@pytest.mark.parametrize(
    ("state_of_it", "result", "value"),
    [("done", {"failed": 0}, 1), ("done", {"failed": 1}, 0), ("failed", None, 0)],
)
async def test_last_run_of_a_job(
    state: State, state_of_it: str, result: dict[str, Any] | None, value: int
) -> None:
    metrics = Metrics(state.sources())
    state.jobs = {"nightly": JobState(5000.0, ("db",)), "weekly": JobState(6000.0, ("db",))}
    metrics.seed([], [("nightly", 10.0, True), ("weekly", 20.0, False), ("removed", 1.0, True)])
    metrics.ended(saved(kind="job", state=state_of_it, result=result))
    found = await samples(metrics)
    assert found[key("job_last_run_timestamp_seconds", job="nightly")] == 1000
    assert found[key("job_last_run_success", job="nightly")] == value
    assert found[key("job_last_run_timestamp_seconds", job="weekly")] == 20
    assert found[key("job_last_run_success", job="weekly")] == 0
    assert key("job_last_run_success", job="removed") not in found
    assert key("save_duration_seconds_count", guest="db", job="nightly") not in found


async def test_addresses_that_users_make_up_do_not_fill_the_memory(state: State) -> None:
    metrics = Metrics(state.sources())
    most = metrics_module.MOST_ADDRESSES
    for number in range(most + 50):
        guest = f"qmp:/run/{number}"
        metrics.ended(saved(guest=guest, job=None, result={"guest": guest, "duration_s": 1.0}))
    for _ in range(2):
        metrics.ended(saved(guest="late", job=None, result={"guest": "late", "duration_s": 1.0}))
    name = "mapsave_save_duration_seconds_count"
    found = {dict(ls)["guest"]: v for (of, ls), v in (await samples(metrics)).items() if of == name}
    assert len(found) == most + 2
    assert found["other"] == 50
    assert found["qmp:/run/0"] == 1
    assert found["late"] == 2  # a configured guest has its own, however late


async def test_a_guests_name_cannot_break_the_format(state: State) -> None:
    metrics = Metrics(state.sources())
    guest = 'a\nb"} 1\n# TYPE x\\'
    metrics.ended(saved(guest=guest, job=None, result={"guest": guest, "data_bytes": 5}))
    for accept in (None, "application/openmetrics-text"):
        (only,) = [
            sample
            for family in await families(metrics, accept)
            for sample in family.samples
            if sample.name == "mapsave_save_bytes_total"
        ]
        assert (only.labels["guest"], only.value) == (guest, 5)


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*", True),
        ("text/html, Application/OpenMetrics-Text", True),
        ("application/openmetrics-text; version=1.x", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.000", False),
        (";;,,=;q", False),
    ],
)
async def test_the_format_is_that_which_is_accepted(
    state: State, accept: str | None, is_openmetrics: bool
) -> None:
    metrics = Metrics(state.sources())
    metrics.ended(saved())
    content, content_type = await metrics.render(accept)
    if is_openmetrics:
        assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert content.endswith(b"# EOF\n")
    else:
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert b"# EOF" not in content
    assert len(await families(metrics, accept)) > 20
    assert b"_created" not in content


async def test_two_services_in_one_process_do_not_mix(state: State) -> None:
    one, other = Metrics(state.sources()), Metrics(state.sources())
    one.began("save")
    assert (await samples(other))[key("operations_begun_total", kind="save")] == 0


async def test_names_follow_the_conventions(state: State) -> None:
    """Those of https://prometheus.io/docs/practices/naming/: base units, and _total."""
    metrics = Metrics(state.sources())
    metrics.ended(saved())
    content, _ = await metrics.render()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", content.decode(), re.M))
    assert len(kinds) > 20
    for name, kind in kinds.items():
        assert re.fullmatch(r"(mapsave|process)_[a-z_]+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|millis\w*|minutes|hours|kb|mb|gb|mib|percent)(_|$)", name)
    assert {"process_open_fds", "process_resident_memory_bytes"} <= set(kinds)
    assert not [name for name in kinds if name.startswith("python_")]


async def test_each_series_is_documented_with_its_labels_and_no_other(state: State) -> None:
    metrics = Metrics(state.sources())
    metrics.ended(saved(error={"id": "x"}))
    metrics.ended(saved(state="failed", error={"id": "x"}))
    metrics.ended(saved(kind="job"))
    state.jobs = {"nightly": JobState(1.0, ("db",))}
    content, _ = await metrics.render()
    there: dict[str, set[str]] = {}
    for family in parser.text_string_to_metric_families(content.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for each in family.samples for label in each.labels}
        there[name] = labels - {"le"}
    documented = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(
            r"^\| `((?:mapsave|process)_\w+)` \| \w+ \| ([^|]*)\|", DOCUMENT.read_text(), re.M
        )
        if not name.startswith(OF_A_FLEET)
    }
    assert documented == there


async def test_the_alert_rules_name_series_that_there_are(state: State) -> None:
    content, _ = await Metrics(state.sources()).render()
    there = set(re.findall(r"^# TYPE (\S+) ", content.decode(), re.M))
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found = {name for rule in group["rules"] for name in re.findall(r"mapsave_\w+", rule["expr"])}
    named = {name for name in found if not name.startswith(OF_A_FLEET)}
    assert {"mapsave_last_success_timestamp_seconds", "mapsave_operations_total"} <= named <= there


async def test_the_textfile_is_read_by_others_and_whole(state: State, tmp_path: Path) -> None:
    path = tmp_path / "mapsave.prom"
    metrics = Metrics(state.sources())
    metrics.ended(saved())
    before = os.umask(0o077)
    try:
        await metrics.write_textfile(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    names = {each.name for each in parser.text_string_to_metric_families(path.read_text())}
    assert "mapsave_save_duration_seconds" in names
    # node_exporter has those itself, and refuses to serve anything where they come twice.
    assert not [name for name in names if not name.startswith("mapsave_")]
    assert sorted(os.listdir(tmp_path)) == ["images", "mapsave.prom"]


async def test_no_reader_sees_half_a_textfile(state: State, tmp_path: Path) -> None:
    path = tmp_path / "mapsave.prom"
    metrics = Metrics(state.sources())
    for number in range(100):
        metrics.ended(saved(result={"guest": f"guest-{number}", "duration_s": 1.0}))
    await metrics.write_textfile(path)
    length = path.stat().st_size
    read: list[int] = []

    async def look() -> None:
        while True:
            read.append(len(await asyncio.to_thread(path.read_bytes)))

    reader = asyncio.create_task(look())
    await asyncio.gather(*(metrics.write_textfile(path) for _ in range(50)))
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    assert read
    assert set(read) == {length}


async def test_a_link_that_was_planted_is_not_followed(state: State, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".mapsave.prom.tmp").symlink_to(victim)
    await Metrics(state.sources()).write_textfile(tmp_path / "mapsave.prom")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "mapsave.prom").is_file()
    assert not (tmp_path / "mapsave.prom").is_symlink()


async def test_a_textfile_that_cannot_be_written_is_told_once(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mapsave")
    path = tmp_path / "later" / "mapsave.prom"
    metrics = Metrics(state.sources())
    for _ in range(3):
        await metrics.write_textfile(path)
    path.mkdir(parents=True)  # now something else is wrong
    for _ in range(2):
        await metrics.write_textfile(path)
    assert os.listdir(path.parent) == ["mapsave.prom"]
    path.rmdir()
    for _ in range(2):
        await metrics.write_textfile(path)
    words = [each.getMessage() for each in caplog.records]
    assert len(words) == 3
    assert "No such file" in words[0]
    assert "Is a directory" in words[1]
    assert "again" in words[2]
    assert path.is_file()
