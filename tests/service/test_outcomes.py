"""What the running service tells others of an outcome: webhooks, hooks, metrics and log agree."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import parser

from tests.kit import cli, service, wait


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the address of a webhook, and what it has been told so far."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/told", told
        finally:
            server.shutdown()
            thread.join()


def series(mapsaved: service.Service, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a series of the metrics by the values of its labels."""
    text = mapsaved.request("GET", "/metrics").body.decode()
    return {
        tuple(sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_a_job_that_fails_in_part_is_told_everywhere_the_same(site: cli.Site) -> None:
    site.add_guest("good", emulator={"memory": "8M"})
    site.add_guest("gone", site.directory / "nobody-listens")
    seen = site.directory / "seen"
    script = f'echo "$MAPSAVE_HOOK $MAPSAVE_OPERATION" >> "{seen}"'
    site.add_hook("note", script, "after_save")
    save, hooks = {"then": "resume"}, {"on_failure": ["note"]}
    site.add_job("nightly", guests=["good", "gone"], save=save, hooks=hooks)
    with webhook() as (url, told):
        site.settings |= {
            "notify": [{"url": url, "on": ["failure", "success"]}],
            "service": {"log": "json"},
        }
        site.write()
        with service.running(site) as mapsaved:
            run = mapsaved.ended(mapsaved.begin(kind="job", job="nightly")["id"])
            saves = mapsaved.get(f"/v1/operations?parent={run['id']}")["operations"]
            by_guest = {each["guest"]: each for each in saves}
            assert (by_guest["good"]["state"], by_guest["gone"]["state"]) == ("done", "failed")

            # One message for the job, none for its saves.
            wait.until(lambda: told, what="message at the webhook")
            assert mapsaved.stop() == 0
            assert [each["operation"]["id"] for each in told] == [run["id"]]
            assert told[0]["outcome"] == "failure"
            assert told[0]["operation"]["result"]["saved"] == 1

            noted = dict(line.split() for line in seen.read_text().splitlines())
            assert noted == {
                "after_save": by_guest["good"]["id"],
                "on_failure": by_guest["gone"]["id"],
            }
            lines = [json.loads(line) for line in mapsaved.logged().splitlines()]
            logged = {line["operation"] for line in lines if "operation" in line}
            assert logged >= {run["id"], *(each["id"] for each in saves)}


def test_metrics_of_a_save_go_on_after_a_restart(site: cli.Site) -> None:
    site.add_guest("good", emulator={"memory": "8M"})
    site.add_job("nightly", guests=["good"], save={"then": "resume"})
    name = "mapsave_last_success_timestamp_seconds"
    with service.running(site) as mapsaved:
        mapsaved.done(kind="job", job="nightly")
        before = series(mapsaved, name)
        assert before.keys() == {("good", "nightly")}
        assert series(mapsaved, "mapsave_operations_total")[("job", "done")] == 1
        assert mapsaved.stop() == 0
    with service.running(site) as again:
        assert series(again, name) == before
        assert series(again, "mapsave_job_last_run_success") == {("nightly",): 1}


def test_a_hook_that_says_no_keeps_the_guest_untouched(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "8M"})
    site.add_hook("no", "echo 'a backup is running' >&2; exit 62", "before_save")
    with service.running(site) as mapsaved:
        failed = site.run("save", "toy", check=3)
        assert "[hook.refused]" in failed.stderr
        assert "a backup is running" in failed.stderr
        assert mapsaved.get("/v1/images")["images"] == []


def test_a_guest_that_was_started_and_has_ended_is_no_zombie(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "8M"})
    with service.running(site) as mapsaved:
        mapsaved.done(kind="save", guest="toy", save={"image": "toy"})  # started, and then quit

        def children() -> list[str]:
            found = Path(f"/proc/{mapsaved.pid}/task").glob("*/children")  # proc(5)
            return [pid for path in found for pid in path.read_text().split()]

        wait.until(lambda: not children(), what="end of the children")
