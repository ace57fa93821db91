"""The REST interface as its clients use it, with emulated guests: every route, begin to end."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mapsave import units
from mapsave.service.api import routes
from prometheus_client import parser

from tests.kit import cli, emulated, service, wait

SIZE = 8 << 20
RESUME = {"then": "resume"}


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with a quick guest, a slow one, a job for both names of quick ones, and no more."""
    site = cli.Site(tmp_path_factory.mktemp("api") / "site")
    nightly = {"guests": ["db", "web"], "save": RESUME, "keep": {"last": 1}}
    site.add_job("nightly", **nightly, schedule="0 3 1 1 *")
    (site.jobs / "broken.yaml").write_text("job: [")
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, "web"),
        emulated.guest(site, "slow", throttle="32K"),
        emulated.guest(site, "passing"),
        service.running(site) as running,
    ):
        running.await_recovery()
        yield running


@pytest.fixture
def slow(mapsaved: service.Service) -> Iterator[dict[str, Any]]:
    """A save that is writing, and takes four minutes; it is cancelled at the end."""
    begun = mapsaved.begin(kind="save", guest="slow", save=RESUME)
    wait.until(
        lambda: mapsaved.get(f"/v1/operations/{begun['id']}")["step"] == "migrate", what="writing"
    )
    yield begun
    mapsaved.request("POST", f"/v1/operations/{begun['id']}/cancel")
    mapsaved.ended(begun["id"])


def status(mapsaved: service.Service, guest: str) -> str:
    return emulated.status(emulated.socket_of(mapsaved.site, guest))


def next_second() -> None:
    """Wait for it: the names of images tell no less apart."""
    now = int(time.time())
    wait.until(lambda: time.time() >= now + 1, what="the next second")


def test_health_tells_this_service_from_others(mapsaved: service.Service) -> None:
    found = mapsaved.get("/v1/health")
    assert (found["pid"], found["state"]) == (mapsaved.pid, str(mapsaved.site.state))
    assert found["recovered"] is True
    # One of the files of the jobs directory is none.
    assert found["status"] == "degraded"
    assert [each["file"] for each in found["broken_jobs"]] == [
        str(mapsaved.site.directory / "jobs/broken.yaml")
    ]


def test_a_save_is_accepted_and_done(mapsaved: service.Service) -> None:
    begun = mapsaved.begin(kind="save", guest="db", save={**RESUME, "image": "db.img"})
    assert begun["state"] in ("pending", "running")
    assert (begun["kind"], begun["guest"], begun["user"]) == ("save", "db", "user 'root'")
    assert begun["request"] == {"guest": "db", "save": {**RESUME, "image": "db.img"}}
    found = mapsaved.ended(begun["id"])
    path = str(mapsaved.site.images / "db.img")
    assert (found["state"], found["image"], found["error"]) == ("done", path, None)
    assert found["result"]["image"] == path
    assert found["result"]["data_bytes"] == SIZE
    assert found["created"] <= found["started"] <= found["ended"] <= units.timestamp(time.time())
    assert status(mapsaved, "db") == "running"

    steps = mapsaved.get(f"/v1/operations/{begun['id']}/steps")
    assert steps["operation"] == found
    names = [each["step"] for each in steps["steps"]]
    assert names[0] == "begin"
    assert names[-2:] == ["commit", "committed"]
    times = [each["time"] for each in steps["steps"]]
    assert times == sorted(times)

    contents = mapsaved.get("/v1/images/db.img")
    assert (contents["image"], contents["guest"], contents["state"]) == (path, "db", "saved")
    assert contents["ram_bytes"] == SIZE
    listed = {each["name"]: each for each in mapsaved.get("/v1/images")["images"]}
    assert listed["db.img"]["guest"] == "db"
    proof = mapsaved.done(kind="verify", image="db.img")
    assert (proof["valid"], proof["data_bytes"]) == (True, SIZE)


def test_a_guest_with_its_images_and_operations(mapsaved: service.Service) -> None:
    number = mapsaved.begin(kind="save", guest="web", save=RESUME)["id"]
    image = mapsaved.ended(number)["result"]["image"]
    found = mapsaved.get("/v1/guests/web")
    assert (found["name"], found["kind"], found["launch"]) == ("web", "qmp", True)
    assert found["operation"] is None
    assert image in [str(mapsaved.site.images / each["name"]) for each in found["images"]]
    assert found["operations"][0]["id"] == number
    assert {each["guest"] for each in found["operations"]} == {"web"}
    listed = mapsaved.get("/v1/guests")["guests"]
    assert [each["name"] for each in listed] == ["db", "web", "slow", "passing"]
    assert {key: found[key] for key in listed[1]} == listed[1]


def test_saved_to_quit_and_restored_with_its_memory(mapsaved: service.Service) -> None:
    socket = emulated.socket_of(mapsaved.site, "passing")
    before = emulated.ram_of(socket, mapsaved.site.directory / "ram")
    saved = mapsaved.done(kind="save", guest="passing", save={"image": "passing.img"})
    assert saved["then"] == "quit"
    assert not emulated.answers(socket)
    done = mapsaved.done(
        kind="restore", image="passing.img", restore={"run": "paused", "channels": "auto"}
    )
    assert (done["guest"], done["run_state"]) == ("passing", "paused")
    assert emulated.ram_of(socket, mapsaved.site.directory / "ram") == before
    emulated.end(socket)
    again = mapsaved.ended(mapsaved.begin(kind="restore", image="passing.img")["id"])
    assert (again["state"], again["error"]["id"]) == ("failed", "check.already_restored")
    assert again["result"] is None
    gone = mapsaved.done(kind="discard", image="passing.img")
    assert gone["freed_bytes"] > 0
    assert mapsaved.request("GET", "/v1/images/passing.img").error == "image.not_found"


def test_check_touches_nothing_and_tells_what_would_fail(mapsaved: service.Service) -> None:
    found = mapsaved.done(kind="check", guest="db")
    assert (found["error"], found["guest"]) == (None, "db")
    mapsaved.done(kind="save", guest="db", save={**RESUME, "image": "there.img"})
    found = mapsaved.done(kind="check", guest="db", check={"image": "there.img"})
    assert found["error"]["id"] == "check.image_exists"
    assert status(mapsaved, "db") == "running"


def test_recover_has_nothing_to_do(mapsaved: service.Service) -> None:
    for dry_run in (True, False):
        found = mapsaved.done(kind="recover", dry_run=dry_run)
        assert (found["dry_run"], found["operations"], found["swept"]) == (dry_run, [], [])


def test_a_job_is_run_and_its_saves_are_operations_of_their_own(mapsaved: service.Service) -> None:
    assert mapsaved.get("/v1/jobs/nightly")["next_run"].endswith("+00:00")
    (broken,) = mapsaved.get("/v1/jobs")["broken"]
    assert broken["error"]["id"] == "config.invalid"
    next_second()
    checked = mapsaved.done(kind="check", job="nightly")
    assert [each["error"] for each in checked["guests"]] == [None, None]
    assert (checked["job"], checked["failed"]) == ("nightly", 0)

    runs = [mapsaved.begin(kind="job", job="nightly")["id"]]
    first = mapsaved.ended(runs[0])
    assert (first["state"], first["result"]["saved"], first["job"]) == ("done", 2, "nightly")
    children = mapsaved.get(f"/v1/operations?parent={runs[0]}")["operations"]
    assert {each["guest"] for each in children} == {"db", "web"}
    assert {(each["kind"], each["state"], each["job"]) for each in children} == {
        ("save", "done", "nightly")
    }
    assert mapsaved.get("/v1/jobs/nightly")["last_run"] == first

    next_second()
    second = mapsaved.done(kind="job", job="nightly")
    assert sorted(line["kept"] for line in second["pruned"]) == [False, False, True, True]
    kept = mapsaved.done(kind="prune", job="nightly", dry_run=True)
    assert (kept["kept"], kept["removed"], kept["dry_run"]) == (2, 0, True)
    assert mapsaved.done(kind="prune", job="nightly")["removed"] == 0


def test_a_running_save_is_shown_and_cancelled(
    mapsaved: service.Service, slow: dict[str, Any]
) -> None:
    path = f"/v1/operations/{slow['id']}"

    def progress() -> Any:
        found = mapsaved.get(path)
        assert found["state"] == "running"
        return found["progress"] if (found["progress"] or {}).get("done_bytes") else None

    found = wait.until(progress, what="progress")
    assert (found["phase"], found["total_bytes"]) == ("write", SIZE)
    assert 0 < found["done_bytes"] <= SIZE
    assert found["bytes_per_s"] >= 0
    assert mapsaved.get("/v1/guests/slow")["operation"] == slow["id"]
    assert mapsaved.get("/v1/health")["operations"] == 1

    answer = mapsaved.request("POST", f"{path}/cancel")
    assert (answer.status, answer.json()["id"]) == (202, slow["id"])
    assert mapsaved.request("POST", f"{path}/cancel").status in (202, 409)
    over = mapsaved.ended(slow["id"])
    assert (over["state"], over["error"]["id"], over["result"]) == (
        "cancelled",
        "interrupted",
        None,
    )
    assert status(mapsaved, "slow") == "running"
    assert not [each for each in mapsaved.site.images.iterdir() if "slow" in each.name]
    again = mapsaved.request("POST", f"{path}/cancel")
    assert (again.status, again.error) == (409, "operation.not_cancellable")
    assert mapsaved.get("/v1/guests/slow")["operation"] is None


def test_what_is_done_cannot_be_cancelled(mapsaved: service.Service) -> None:
    number = mapsaved.begin(kind="save", guest="db", save=RESUME)["id"]
    mapsaved.ended(number)
    answer = mapsaved.request("POST", f"/v1/operations/{number}/cancel")
    assert (answer.status, answer.error) == (409, "operation.not_cancellable")
    assert "done" in answer.json()["error"]["message"]


def test_a_guest_that_is_being_saved_is_busy(
    mapsaved: service.Service, slow: dict[str, Any]
) -> None:
    found = mapsaved.ended(mapsaved.begin(kind="save", guest="slow")["id"])
    assert (found["state"], found["error"]["id"]) == ("failed", "guest.busy")
    assert mapsaved.get(f"/v1/operations/{slow['id']}")["state"] == "running"


def test_two_guests_are_saved_at_once(mapsaved: service.Service, slow: dict[str, Any]) -> None:
    number = mapsaved.begin(kind="save", guest="db", save=RESUME)["id"]
    # Its changes in the meantime are passed over.
    done = mapsaved.get(f"/v1/operations/{number}?wait=60&until=end")
    assert (done["state"], done["guest"]) == ("done", "db")
    assert mapsaved.get(f"/v1/operations/{slow['id']}?wait=0.01&until=end")["state"] == "running"


def test_a_change_can_be_waited_for(mapsaved: service.Service, slow: dict[str, Any]) -> None:
    path = f"/v1/operations/{slow['id']}"
    revision = mapsaved.get(path)["revision"]
    changed = mapsaved.get(f"{path}?wait=30&since={revision}")
    assert changed["revision"] > revision
    # What is known to have changed already is not waited for.
    assert mapsaved.get(f"{path}?wait=60&since={revision}")["revision"] > revision
    mapsaved.request("POST", f"{path}/cancel")
    seen = changed
    while seen["state"] == "running":
        seen = mapsaved.get(f"{path}?wait=30&since={seen['revision']}")
    assert seen["state"] == "cancelled"
    # Nor is what has ended.
    assert mapsaved.get(f"{path}?wait=60")["state"] == "cancelled"


def test_waiting_ends_without_a_change(mapsaved: service.Service, slow: dict[str, Any]) -> None:
    path = f"/v1/operations/{slow['id']}"
    assert mapsaved.get(f"{path}?wait=0.01&since={2**53}")["state"] == "running"


def test_the_same_id_twice_is_one_operation(mapsaved: service.Service) -> None:
    body = {"kind": "save", "guest": "db", "save": RESUME}
    own = {"Mapsave-Operation": "00112233aabb"}
    answers: list[service.Answer] = []

    def begin() -> None:
        answers.append(mapsaved.request("POST", "/v1/operations", body, own))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert {(each.status, each.json()["id"]) for each in answers} == {(202, "00112233aabb")}
    assert mapsaved.ended("00112233aabb")["state"] == "done"
    created = mapsaved.get("/v1/operations/00112233aabb")["created"]
    later = mapsaved.request("POST", "/v1/operations", body, own)
    assert (later.status, later.json()["state"]) == (202, "done")
    assert later.json()["created"] == created
    begun = mapsaved.get("/v1/operations?limit=1000")["operations"]
    assert [each["id"] for each in begun].count("00112233aabb") == 1


def test_the_beginning_of_an_id_will_do_where_it_is_the_only_one(mapsaved: service.Service) -> None:
    for own in ("fedcba000001", "fedcba000002"):
        headers = {"Mapsave-Operation": own}
        assert mapsaved.request("POST", "/v1/operations", {"kind": "recover"}, headers)
        mapsaved.ended(own)
    assert mapsaved.get("/v1/operations/fedcba000002")["id"] == "fedcba000002"
    answer = mapsaved.request("GET", "/v1/operations/fedcba")
    assert (answer.status, answer.error) == (404, "operation.unknown")
    for own in ("fedcba000001", "fedcba000002"):
        assert own in answer.json()["error"]["message"]
    unique = mapsaved.begin(kind="recover")["id"]
    assert mapsaved.get(f"/v1/operations/{unique[:11]}")["id"] == unique
    assert mapsaved.get(f"/v1/operations/{unique[:11]}/steps")["operation"]["id"] == unique


def test_operations_are_listed_newest_first_and_paged(mapsaved: service.Service) -> None:
    begun = [mapsaved.begin(kind="verify", image=f"none{n}")["id"] for n in range(5)]
    for each in begun:
        mapsaved.ended(each)
    pages: list[str] = []
    query = "/v1/operations?kind=verify&state=failed&limit=2"
    page = mapsaved.get(query)["operations"]
    while page and len(pages) < 5:
        assert len(page) <= 2
        pages += [each["id"] for each in page]
        page = mapsaved.get(f"{query}&before={pages[-1]}")["operations"]
    assert pages[:5] == begun[::-1]
    assert mapsaved.get("/v1/operations?guest=nobody") == {"operations": []}


def test_metrics_can_be_parsed_and_have_the_saves(mapsaved: service.Service) -> None:
    def samples() -> dict[Any, float]:
        answer = mapsaved.request("GET", "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")
        return {
            (each.name, each.labels.get("guest"), each.labels.get("kind")): each.value
            for family in parser.text_string_to_metric_families(answer.body.decode())
            for each in family.samples
            if each.labels.get("job", "") == "" and "outcome" not in each.labels
        }

    count = ("mapsave_save_duration_seconds_count", "db", None)
    begun = ("mapsave_operations_begun_total", None, "save")
    before = samples()
    mapsaved.done(kind="save", guest="db", save=RESUME)
    after = samples()
    assert after[count] == before.get(count, 0) + 1
    assert after[begun] == before.get(begun, 0) + 1


def test_reload_takes_over_a_new_guest(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        assert mapsaved.get("/v1/guests")["guests"] == []
        site.add_guest("db", emulator={"memory": "8M"})
        assert mapsaved.request("GET", "/v1/guests/db").status == 404
        answer = mapsaved.request("POST", "/v1/reload")
        assert (answer.status, answer.json()) == (200, {"needs_restart": []})
        assert mapsaved.get("/v1/guests/db")["kind"] == "emulator"


def test_every_route_that_looks_answers_as_json_or_says_what(mapsaved: service.Service) -> None:
    number = mapsaved.begin(kind="check", guest="db")["id"]
    mapsaved.ended(number)
    mapsaved.done(kind="save", guest="db", save={**RESUME, "image": "one.img"})
    parts = {"guest": "db", "image": "one.img", "job": "nightly", "operation": number}
    asked = 0
    for route in routes.ROUTES:
        if route.method == "GET" and not route.endless:
            answer = mapsaved.request("GET", route.path.format(**parts))
            assert answer.status == 200, (route.path, answer)
            if route.path.endswith("/picture"):
                assert answer.headers["Content-Type"] == "image/svg+xml; charset=utf-8"
            elif route.path != "/metrics":
                assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
                assert answer.json()
            asked += 1
    assert asked >= 13
