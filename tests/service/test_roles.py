"""Who may do what, asked by real users of this host: by the kernel's word, groups included."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mapsave.service import work
from mapsave.service.api import routes

from tests.kit import cli, processes, service, wait
from tests.service.users import OPERATORS, READERS, UID

pytestmark = pytest.mark.root

# Asks over the socket that it connects to itself, as one user; prints an array of answers.
_ASK = """
import http.client, json, socket, sys
found = []
for method, target, body, *more in json.load(sys.stdin):
    connection = http.client.HTTPConnection("mapsaved", timeout=240)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    kind = {} if body is None else {"Content-Type": "application/json"}
    kind |= dict(more)
    connection.request(method, target, None if body is None else json.dumps(body), kind)
    answer = connection.getresponse()
    is_json = answer.getheader("Content-Type").startswith("application/json")
    found.append([answer.status, answer.read().decode() if is_json else ""])
    connection.close()
print(json.dumps(found))
"""


GROUPS = {"operators": [OPERATORS.gr_name], "readers": [READERS.gr_name]}


@pytest.fixture(scope="module")
def mapsaved() -> Iterator[service.Service]:
    """A service with groups."""
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        site.add_guest("db", emulator={"memory": "8M"})
        site.add_guest("other", emulator={"memory": "8M"})
        site.add_guest("bound", emulator={"memory": "8M"}, policy="dac-private")
        site.add_guest("open", emulator={"memory": "8M"}, clones="operator", clone={})
        site.add_job("nightly", guests=["db"], save={"then": "resume"})
        site.settings = {"service": GROUPS}
        site.write()
        site.config.chmod(0o644)
        with service.running(site) as running:
            saved = running.done(kind="save", guest="db", save={"image": "one", "then": "resume"})
            assert saved["guest"] == "db"
            running.done(kind="save", guest="bound", save={"image": "bound", "then": "resume"})
            yield running


@pytest.fixture(autouse=True)
def _guests_end(mapsaved: service.Service) -> Iterator[None]:
    with service.emulated_ended(mapsaved.site):
        yield


class User:
    """A user who is in some groups by their own right, or by a list of further ones."""

    def __init__(self, mapsaved: service.Service, gid: int, *more: int) -> None:
        self.mapsaved = mapsaved
        self.command = service.as_user(UID, gid, list(more))

    def ask_all(self, *requests: tuple[Any, ...]) -> list[tuple[int, Any]]:
        """Return status and body of each answer; a request may have headers at its end."""
        words = [*self.command, sys.executable, "-c", _ASK, str(self.mapsaved.site.socket)]
        done = subprocess.run(
            words,
            input=json.dumps(requests),
            capture_output=True,
            text=True,
            check=False,
            timeout=wait.LONG,
            env=processes.environment(),
        )
        assert done.returncode == 0, done.stderr
        return [(status, text and json.loads(text)) for status, text in json.loads(done.stdout)]

    def ask(
        self, method: str, target: str, body: Any = None, *headers: tuple[str, str]
    ) -> tuple[int, Any]:
        """Return status and body of one answer."""
        return self.ask_all((method, target, body, *headers))[0]

    def asked_for(self, **body: Any) -> str:
        """Ask for an operation, and wait for its end; return its state, or the error's id."""
        status, found = self.ask("POST", "/v1/operations", body)
        if status != 202:
            assert status == 403, found
            return str(found["error"]["id"])
        assert found["user"] == f"user {UID}"
        return str(self.mapsaved.ended(found["id"])["state"])

    def run(self, *arguments: str) -> cli.Result:
        return self.mapsaved.site.run(*arguments, under=self.command, env={"HOME": "/"})


@pytest.fixture
def operator(mapsaved: service.Service) -> User:
    """A member of 'operators' by a supplementary group."""
    return User(mapsaved, UID, OPERATORS.gr_gid)


@pytest.fixture
def reader(mapsaved: service.Service) -> User:
    """A member of 'readers' by the group that is its own, and in no other one."""
    return User(mapsaved, READERS.gr_gid)


@pytest.fixture
def stranger(mapsaved: service.Service) -> User:
    """One who may connect, and that is all."""
    return User(mapsaved, UID)


# Requests that end at once.
_ABOUT: dict[str, dict[str, Any]] = {
    **{key: {"guest": "missing"} for key in ("save", "check")},
    **{
        key: {"image": "missing"}
        for key in ("restore", "verify", "discard", "pin", "unpin", "warm")
    },
    "clone": {"image": "missing", "clone": {"count": 1}},
    **{key: {"job": "missing"} for key in ("job", "prune")},
    **{key: {"dry_run": True} for key in ("save-all", "restore-all", "recover")},
}
_PARTS = {"guest": "db", "image": "one", "job": "nightly", "operation": "0"}
LOOKS = [
    ("GET", each.path.format(**_PARTS), None) for each in routes.ROUTES if each.method == "GET"
]


def test_the_socket_is_for_everybody(mapsaved: service.Service) -> None:
    assert mapsaved.site.socket.stat().st_mode & 0o7777 == 0o666


def test_root_may_do_everything(mapsaved: service.Service) -> None:
    assert mapsaved.done(kind="save", guest="db", save={"image": "two", "then": "resume"})
    assert mapsaved.done(kind="discard", image="two", unrestored=True)
    assert mapsaved.request("POST", "/v1/reload").status == 200
    assert mapsaved.get("/v1/images/one")["command"] is not None


def test_an_operator_works_on_guests_and_images(operator: User) -> None:
    save = {"image": "three", "then": "resume"}
    assert operator.asked_for(kind="check", guest="db") == "done"
    assert operator.asked_for(kind="save", guest="db", save=save) == "done"
    assert operator.asked_for(kind="verify", image="three") == "done"
    assert operator.asked_for(kind="job", job="nightly") == "done"
    assert operator.asked_for(kind="save-all", dry_run=True) == "done"
    assert operator.asked_for(kind="restore-all", dry_run=True) == "done"
    assert operator.asked_for(kind="save", guest="db", save={"image": "four"}) == "done"
    assert operator.asked_for(kind="restore", image="four") == "done"
    answers = operator.ask_all(*LOOKS)
    assert {status for status, _ in answers} <= {200, 404}
    assert operator.ask("GET", "/v1/images/one")[1]["command"] is not None


def test_an_operator_cancels_what_others_began(mapsaved: service.Service, operator: User) -> None:
    status, found = operator.ask("POST", "/v1/operations/0123456789ab/cancel")
    assert (status, found["error"]["id"]) == (404, "operation.unknown")
    over = mapsaved.begin(kind="recover")["id"]
    mapsaved.ended(over)
    status, found = operator.ask("POST", f"/v1/operations/{over}/cancel")
    assert (status, found["error"]["id"]) == (409, "operation.not_cancellable")


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "discard", "image": "one"},
        {"kind": "recover"},
        {"kind": "recover", "dry_run": True},
        {"kind": "prune", "job": "nightly"},
        {"kind": "restore-all", "discard": True},
        {"kind": "save", "guest": "qmp:/run/other.qmp"},
        {"kind": "check", "guest": "qmp:/run/other.qmp"},
        {"kind": "save", "guest": "libvirt:web"},
        {"kind": "save-all", "guests": ["db", "qmp:/run/other.qmp"]},
        {"kind": "restore", "image": "one", "restore": {"guest": "qmp:/run/other.qmp"}},
        {"kind": "restore", "image": "one", "restore": {"into": "/run/other.qmp"}},
        {"kind": "restore", "image": "one", "restore": {"xml": "<domain/>"}},
        {"kind": "restore", "image": "one", "restore": {"trust_recorded_command": True}},
        {"kind": "restore", "image": "one", "restore": {"without_metadata": True}},
        {"kind": "restore", "image": "one", "restore": {"trust_image": True}},
        {"kind": "restore", "image": "one", "restore": {"guest": "other"}},
        {"kind": "save", "guest": "bound", "save": {"policy": "none"}},
        {"kind": "check", "guest": "bound", "check": {"policy": "none"}},
        {"kind": "restore", "image": "bound", "restore": {"policy": "none"}},
        {"kind": "restore", "image": "one", "restore": {"guest": "bound", "policy": "none"}},
    ],
)
def test_what_reaches_further_is_roots(
    mapsaved: service.Service, operator: User, body: dict[str, Any]
) -> None:
    before = mapsaved.get("/v1/operations")
    status, found = operator.ask("POST", "/v1/operations", body)
    error = found["error"]
    assert (status, error["id"], error["exit_code"]) == (403, "permission.role", 7)
    assert (error["data"]["role"], error["data"]["needed"]) == ("operator", "admin")
    assert mapsaved.get("/v1/operations") == before


def test_an_operator_replaces_images_of_that_guest_only(
    mapsaved: service.Service, operator: User
) -> None:
    """Else who may save one guest could delete the image that another one is."""
    replace = {"image": "one", "replace": True, "then": "resume"}
    assert operator.asked_for(kind="save", guest="other", save=replace) == "permission.role"
    assert mapsaved.get("/v1/images/one")["guest"] == "db"
    assert operator.asked_for(kind="save", guest="db", save=replace) == "done"


def test_an_operator_replaces_no_image_that_another_guest_has_come_to_be_meanwhile() -> None:
    """Asked while there is no such image yet: the save that will make it is under way."""
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        for name in ("db", "other"):
            site.add_guest(name, emulator={"memory": "8M"})
        go = site.directory / "go"
        site.settings["service"] = {**GROUPS, "concurrency": 1}
        site.add_hook("wait", f"until [ -e {go} ]; do sleep 0.05; done", "before_save")
        site.config.chmod(0o644)
        with service.running(site) as mapsaved, service.emulated_ended(site):
            operator = User(mapsaved, UID, OPERATORS.gr_gid)
            saves = [
                {"kind": "save", "guest": "db", "save": {"image": "x"}},
                {"kind": "save", "guest": "other", "save": {"image": "x", "replace": True}},
            ]
            answers = operator.ask_all(*(("POST", "/v1/operations", each) for each in saves))
            assert [status for status, _ in answers] == [202, 202], answers
            go.touch()
            first, second = (mapsaved.ended(found["id"]) for _, found in answers)
            assert first["state"] == "done", first
            assert (second["state"], second["error"]["id"]) == ("failed", "check.image_exists")
            assert mapsaved.get("/v1/images/x")["guest"] == "db"


def test_the_label_policy_that_root_set_binds_operators(
    mapsaved: service.Service, operator: User
) -> None:
    """Not root itself, and not where it is the same, or none is set."""
    save = {"image": "bound2", "then": "resume"}
    own = {**save, "policy": "dac-private"}
    assert operator.asked_for(kind="save", guest="bound", save=own) == "done"
    assert (mapsaved.site.images / "bound2").stat().st_mode & 0o777 == 0o600
    assert operator.asked_for(kind="check", guest="db", check={"policy": "none"}) == "done"
    mapsaved.done(kind="check", guest="bound", check={"policy": "none"})
    refused = operator.run("check", "bound", "--policy", "none", "--json")
    assert (refused.returncode, refused.error()["id"]) == (7, "permission.role")
    refused = operator.run("save", "bound", "--policy", "none")
    assert refused.returncode == 7
    assert "'dac-private'" in refused.stderr


def test_an_image_goes_into_another_guest_where_that_one_allows_it(
    mapsaved: service.Service, operator: User
) -> None:
    own = {"image": "clone", "then": "resume"}
    assert operator.asked_for(kind="save", guest="db", save=own) == "done"
    into = {"guest": "open"}
    assert operator.asked_for(kind="restore", image="clone", restore=into) == "done"
    assert mapsaved.get("/v1/images/clone")["state"] == "restored"
    refused = operator.run("restore", "clone", "--again", "--guest", "other", "--json")
    assert (refused.returncode, refused.error()["id"]) == (7, "permission.role")
    assert "clones: operator" in refused.error()["hint"]
    into = {"guest": "other", "again": True}
    mapsaved.done(kind="restore", image="clone", restore=into)


def test_an_image_is_cloned_where_its_guest_allows_it(
    mapsaved: service.Service, operator: User
) -> None:
    """Each clone is a restore, and a part of the clone; the image stays as it is."""
    mapsaved.site.guests["db"]["clone"] = {}
    mapsaved.site.write()
    mapsaved.site.run("reload", check=0)
    own = {"image": "golden", "then": "resume"}
    mapsaved.done(kind="save", guest="db", save=own)
    refused = operator.run("clone", "golden", "--count", "2", "--json")
    assert (refused.returncode, refused.error()["id"]) == (7, "permission.role")
    assert "'clones: operator' of guest 'db'" in refused.error()["hint"]
    trusting = {"count": 1, "guest": "open", "trust_image": True}
    assert operator.asked_for(kind="clone", image="golden", clone=trusting) == "permission.role"
    done = operator.run("clone", "golden", "--count", "2", "--guest", "open", "--json").json()
    assert [each["guest"] for each in done["clones"]] == ["open-1", "open-2"]
    assert done["cloned"] == 2
    (parent,) = mapsaved.get("/v1/operations?kind=clone&limit=1")["operations"]
    assert parent["user"] == f"user {UID}"
    parts = mapsaved.get(f"/v1/operations?parent={parent['id']}")["operations"]
    assert sorted(each["guest"] for each in parts) == ["open-1", "open-2"]
    assert {each["kind"] for each in parts} == {"restore"}
    shown = mapsaved.get("/v1/guests?look=true")["guests"]
    states = {each["name"]: each["state"] for each in shown}
    assert states["open-1"] == "running"
    assert mapsaved.get("/v1/guests/open-1?look=true")["state"] == "running"
    assert operator.asked_for(kind="save", guest="open-1", save={"image": "cloned"}) == "done"
    assert mapsaved.get("/v1/images/golden")["state"] == "saved"


def test_the_general_policy_binds_and_is_asked_again_once_it_is_the_restores_turn() -> None:
    """The image is exchanged by one of a guest with a policy, while its restore waits."""
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        for name in ("db", "open"):
            site.add_guest(name, emulator={"memory": "8M"}, clones="operator")
        site.add_guest("bound", emulator={"memory": "8M"}, policy="dac-private")
        go = site.directory / "go"
        site.settings["service"] = GROUPS
        site.add_hook("wait", f"until [ -e {go} ]; do sleep 0.05; done", "before_restore")
        site.config.chmod(0o644)
        with service.running(site) as mapsaved, service.emulated_ended(site):
            operator = User(mapsaved, UID, OPERATORS.gr_gid)
            for name in ("db", "bound"):
                mapsaved.done(kind="save", guest=name, save={"image": name})
            asked = {"kind": "restore", "image": "db", "restore": {"policy": "none"}}
            status, found = operator.ask("POST", "/v1/operations", asked)
            assert status == 202, found
            (site.images / "bound").rename(site.images / "db")
            go.touch()
            ended = mapsaved.ended(found["id"])
            assert (ended["state"], ended["error"]["id"]) == ("failed", "permission.role")

            site.settings["save"] = {"policy": "dac-private"}
            site.write()
            assert mapsaved.request("POST", "/v1/reload").status == 200
            save = {"policy": "none", "then": "resume"}
            assert operator.asked_for(kind="save", guest="open", save=save) == "permission.role"


def test_a_job_that_others_could_have_written_sets_no_policy() -> None:
    with service.reachable_site() as site:
        site.add_guest("db", emulator={"memory": "8M"}, policy="dac-private")
        job = site.add_job("nightly", guests=["db"], save={"policy": "none"})
        with service.running(site) as mapsaved:
            assert mapsaved.get("/v1/jobs")["broken"] == []
            os.chown(job, -1, OPERATORS.gr_gid)
            job.chmod(0o664)
            # A job that was good keeps the configuration as it was.
            answer = mapsaved.request("POST", "/v1/reload")
            assert answer.status != 200
            assert str(job) in answer.json()["error"]["message"]
            mapsaved.stop()
        with service.running(site) as mapsaved:
            (broken,) = mapsaved.get("/v1/jobs")["broken"]
            assert broken["error"]["id"] == "permission.denied"
            job.write_text("job: nightly\nguests: [db]\n")
            assert mapsaved.request("POST", "/v1/reload").status == 200


def test_an_operator_does_not_reload(operator: User) -> None:
    status, found = operator.ask("POST", "/v1/reload")
    assert (status, found["error"]["id"]) == (403, "permission.role")


def test_a_reader_looks_and_that_is_all(mapsaved: service.Service, reader: User) -> None:
    assert {status for status, _ in reader.ask_all(*LOOKS)} <= {200, 404}
    number = mapsaved.get("/v1/operations")["operations"][0]["id"]
    assert reader.ask("GET", f"/v1/operations/{number}")[0] == 200
    held = reader.ask("GET", "/v1/images/one")[1]
    assert held["guest"] == "db"
    assert held["command"] is None
    for target, body in (
        ("/v1/operations", {"kind": "save", "guest": "db"}),
        ("/v1/operations", {"kind": "check", "guest": "db"}),
        ("/v1/operations", {"kind": "verify", "image": "one"}),
        (f"/v1/operations/{number}/cancel", None),
        ("/v1/reload", None),
    ):
        status, found = reader.ask("POST", target, body)
        assert (status, found["error"]["id"]) == (403, "permission.role")
        assert found["error"]["data"]["role"] == "reader"
        assert f"user {UID}" in found["error"]["message"]


def test_a_stranger_sees_nothing(stranger: User) -> None:
    everything = [
        (each.method, each.path.format(**_PARTS), {"kind": "recover"} if each.takes_body else None)
        for each in routes.ROUTES
    ]
    for status, found in stranger.ask_all(*everything):
        assert (status, found["error"]["id"]) == (403, "permission.role")
        assert set(found) == {"error"}
    result = stranger.run("list")
    assert (result.returncode, result.stdout) == (7, "")
    assert "[permission.role]" in result.stderr
    assert f"members of the group {READERS.gr_name!r} or {OPERATORS.gr_name!r}" in result.stderr
    asked = stranger.run("save", "db", "--json")
    hint = asked.error("permission.role")["hint"]
    assert asked.returncode == 7
    assert OPERATORS.gr_name in hint


def test_who_asks_and_what_they_may_do_can_be_asked(
    mapsaved: service.Service, operator: User, reader: User
) -> None:
    admin = mapsaved.get("/v1/caller")
    assert (admin["user"], admin["role"], admin["hint"]) == ("user 'root'", "admin", None)
    assert set(admin["may"]) == set(work.KINDS)
    for user, role, group in (
        (operator, "operator", "root"),
        (reader, "reader", OPERATORS.gr_name),
    ):
        status, found = user.ask("GET", "/v1/caller")
        assert (status, found["role"]) == (200, role)
        assert group in found["hint"]
        for kind in work.KINDS:  # what is left out is refused before anything else is looked at
            status, answered = user.ask("POST", "/v1/operations", {"kind": kind, **_ABOUT[kind]})
            assert (status == 403) == (kind not in found["may"]), (kind, answered)


def test_many_groups_are_looked_through(mapsaved: service.Service) -> None:
    # More than fit into what the kernel is first asked with.
    many = [*range(20_000, 20_300), OPERATORS.gr_gid]
    assert User(mapsaved, UID, *many).asked_for(kind="check", guest="db") == "done"


def test_the_command_line_of_an_operator(mapsaved: service.Service, operator: User) -> None:
    done = operator.run("save", "db", "--image", "five", "--then", "resume", "--json")
    assert done.returncode == 0, done
    assert done.json()["image"] == str(mapsaved.site.images / "five")
    listed = operator.run("list", "--json").json()
    assert "five" in [each["name"] for each in listed["images"]]
    assert operator.run("verify", "five").returncode == 0
    assert operator.run("inspect", "five").returncode == 0
    assert operator.run("check", "five").returncode == 0
    assert operator.run("job", "run", "nightly").returncode == 0
    assert operator.run("ps", "--all").returncode == 0
    refused = operator.run("discard", "five", "--yes")
    assert (refused.returncode, refused.stdout) == (7, "")
    assert "[permission.role]" in refused.stderr
    assert (mapsaved.site.images / "five").exists()


def test_the_command_line_of_a_reader(reader: User) -> None:
    assert reader.run("list").returncode == 0
    held = reader.run("inspect", "one", "--json").json()
    assert (held["command"], held["names"]) == (None, None)
    assert reader.run("inspect", "one").returncode == 0
    assert reader.run("ps").returncode == 0
    refused = reader.run("save", "db", "--json")
    assert (refused.returncode, refused.error()["id"]) == (7, "permission.role")


def test_the_user_that_the_service_runs_as_is_its_administrator() -> None:
    with service.reachable_site() as site:
        for path in (site.directory, site.images, site.state):
            os.chown(path, UID, UID)
        mine = service.as_user(UID, UID, [])
        with service.running(site, command=[*mine, *cli.COMMAND]) as mapsaved:
            wait.until(lambda: mapsaved.get("/v1/health")["recovered"], what="recovery")
            user = User(mapsaved, UID)
            assert user.asked_for(kind="recover") == "done"
            assert user.ask("POST", "/v1/reload")[0] == 200
            assert mapsaved.done(kind="recover")["swept"] == []  # root may, as well
            assert mapsaved.site.socket.stat().st_uid == UID


def _as(role: str) -> tuple[str, str]:
    return "Mapsave-Role", role


def test_a_client_lowers_its_own_role(mapsaved: service.Service) -> None:
    """Root's program that asks to be an operator may do what an operator may, and no more."""

    def ask(method: str, target: str, body: Any, role: str) -> service.Answer:
        return mapsaved.request(method, target, body, dict([_as(role)]))

    path, into = "/v1/operations", {"into": "/run/qemu.sock"}
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/v1/reload", None),
        ("POST", path, {"kind": "discard", "image": "one", "unrestored": True}),
        ("POST", path, {"kind": "save", "guest": "qmp:/run/qemu.sock"}),
        ("POST", path, {"kind": "restore", "image": "one", "restore": into}),
    ]
    for method, target, body in requests:
        answer = ask(method, target, body, "operator")
        assert (answer.status, answer.error) == (403, "permission.role"), (target, body)
        assert answer.json()["error"]["data"] == {"role": "operator", "needed": "admin"}
        assert "Mapsave-Role" in answer.json()["error"]["hint"]
    verify = {"kind": "verify", "image": "one"}
    found = ask("POST", path, verify, "operator")
    assert found.status == 202
    assert mapsaved.ended(found.json()["id"])["state"] == "done"
    assert ask("POST", path, verify, "reader").error == "permission.role"
    assert ask("GET", "/v1/images/one", None, "reader").json()["command"] is None
    assert ask("GET", "/v1/caller", None, "reader").json()["role"] == "reader"
    assert mapsaved.get("/v1/caller")["role"] == "admin"


def test_no_client_raises_its_own_role(operator: User, reader: User, stranger: User) -> None:
    verify = {"kind": "verify", "image": "one"}
    assert reader.ask("POST", "/v1/operations", verify, _as("operator"))[0] == 403
    assert reader.ask("GET", "/v1/caller", None, _as("operator"))[1]["role"] == "reader"
    assert operator.ask("GET", "/v1/caller", None, _as("reader"))[1]["role"] == "reader"
    assert operator.ask("GET", "/v1/caller", None, _as("operator"))[1]["role"] == "operator"
    assert stranger.ask("GET", "/v1/health", None, _as("operator"))[0] == 403


@pytest.mark.parametrize("word", ["", "admin", "Operator", "nothing", "operator, reader"])
def test_a_role_that_is_none_is_refused(mapsaved: service.Service, word: str) -> None:
    answer = mapsaved.request("GET", "/v1/caller", None, dict([_as(word)]))
    assert (answer.status, answer.error) == (400, "request.invalid")
