"""The commands through the service: the same output, JSON and exit codes as without it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, emulated, service

RESUME = ("--then", "resume")
ODD = "wêb one"
# What differs from one time to the next.
_VOLATILE = (
    (re.compile(r"\d{8}T\d{6}Z"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), "DURATION"),
    (re.compile(r"\b\d+(\.\d+)? [KMGT]iB free"), "ROOM free"),
    (re.compile(r"\b\d+ (open files?|threads?) left"), "SOME left"),
    (re.compile(r"\b(local|served)\b"), "WAY"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
)


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with guests that are quick, slow and not there, and jobs for them."""
    site = cli.Site(tmp_path_factory.mktemp("cli") / "site")
    _add_job(site, "nightly", ["db"])
    _add_job(site, "all", ["db", "gone"])
    (site.jobs / "broken.yaml").write_text("job: [")
    site.add_guest("gone", site.directory / "gone.qmp")
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, ODD),
        emulated.guest(site, "passing local"),
        emulated.guest(site, "passing served"),
        service.running(site) as running,
    ):
        yield running


def both(mapsaved: service.Service, *arguments: str) -> tuple[cli.Result, cli.Result]:
    """Run a command without and with the service; WAY in it becomes another word for each."""
    before = _newest(mapsaved)
    local = mapsaved.site.run("--local", *(each.replace("WAY", "local") for each in arguments))
    assert _newest(mapsaved) == before, "the service had to do with it"
    return local, mapsaved.site.run(*(each.replace("WAY", "served") for each in arguments))


def _newest(mapsaved: service.Service) -> Any:
    return mapsaved.get("/v1/operations?limit=1")["operations"]


def _add_job(site: cli.Site, name: str, guests: list[str]) -> None:
    save = {"then": "resume", "image": "{guest}-{job}.img", "replace": True}
    site.add_job(name, guests=guests, save=save, keep={"last": 1})


def steady(text: str) -> str:
    """Return output without what differs from one time to the next."""
    for pattern, word in _VOLATILE:
        text = pattern.sub(word, text)
    return text


def shape(found: Any) -> Any:
    """Return a JSON value with numbers and strings as they are at any time."""
    if isinstance(found, dict):
        return {key: shape(each) for key, each in found.items() if key != "duration_s"}
    if isinstance(found, list):
        return [shape(each) for each in found]
    if isinstance(found, str):
        return steady(found)
    return "NUMBER" if isinstance(found, (int, float)) and not isinstance(found, bool) else found


def same(mapsaved: service.Service, code: int, *arguments: str) -> tuple[cli.Result, cli.Result]:
    """Fail unless a command prints and returns the same with and without the service."""
    local, served = both(mapsaved, *arguments)
    assert (local.returncode, served.returncode) == (code, code), (local, served)
    assert steady(local.stderr) == steady(served.stderr)
    if "--json" in arguments:
        assert shape(local.json()) == shape(served.json())
    else:
        assert _columns(steady(local.stdout)) == _columns(steady(served.stdout))
    return local, served


def _columns(text: str) -> list[list[str]]:
    """Return words, for the width of columns follows that of times."""
    return [line.split() for line in text.splitlines()]


GOOD = [
    ("save", "db", "--image", "WAY.img", *RESUME, "--replace"),
    ("save", ODD, "--image", "WAY ä.img", *RESUME, "--replace"),
    ("check", "db"),
    ("check", ODD, "--image", "other"),
    ("list",),
    ("list", "--guest", "db", "--latest"),
    ("list", "--sort", "name"),
    ("recover",),
    ("recover", "--dry-run"),
    ("job", "run", "nightly"),
    ("job", "check", "nightly"),
    ("job", "prune", "nightly"),
    ("job", "prune", "nightly", "--dry-run"),
]


def test_the_client_of_the_service_loads_neither_event_loop_nor_monitor(
    mapsaved: service.Service,
) -> None:
    words = ("save", "db", "-o", "imports", *RESUME)
    done = mapsaved.site.run(*words, check=0, env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mapsave.client.delegate" in loaded
    ours = {"mapsave.operations.save", "mapsave.monitor.qmp"}
    assert not loaded & {"asyncio", "logging", "http.client", "ssl", "email.parser", *ours}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("arguments", GOOD, ids=" ".join)
def test_what_goes_well_is_told_alike(
    mapsaved: service.Service, arguments: tuple[str, ...], form: tuple[str, ...]
) -> None:
    _, served = same(mapsaved, 0, *arguments, *form)
    assert served.stdout


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    "arguments", [("inspect", "image ö"), ("verify", "image ö"), ("check", "image ö")], ids=" ".join
)
def test_an_image_is_looked_into_alike(
    mapsaved: service.Service, arguments: tuple[str, ...], form: tuple[str, ...]
) -> None:
    mapsaved.site.run("save", "db", "-o", "image ö", "--replace", *RESUME, check=0)
    before = len(mapsaved.get("/v1/operations?limit=1000")["operations"])
    _, served = same(mapsaved, 0, *arguments, *form)
    assert (served.json()["image"] if form else served.stdout).count("image ö") == 1
    after = len(mapsaved.get("/v1/operations?limit=1000")["operations"])
    assert after - before == (0 if arguments[0] == "inspect" else 1)


def test_a_picture_is_drawn_alike(mapsaved: service.Service, tmp_path: Path) -> None:
    site, file = mapsaved.site, tmp_path / "WAY.svg"
    site.run("save", "db", "-o", "drawn", "--replace", *RESUME, check=0)
    _, served = same(mapsaved, 0, "inspect", "drawn", "--picture", str(file), "--json")
    pictures = [(tmp_path / f"{way}.svg").read_bytes() for way in ("local", "served")]
    assert pictures[0] == pictures[1] != b""
    assert served.json() == {"picture": str(tmp_path / "served.svg"), "bytes": len(pictures[1])}
    answer = mapsaved.request("GET", "/v1/images/drawn/picture")
    assert answer.headers["Content-Type"] == "image/svg+xml; charset=utf-8"
    assert answer.body == pictures[1]
    missing = str(tmp_path / "missing/picture.svg")
    same(mapsaved, 2, "inspect", "drawn", "--picture", missing, "--json")
    same(mapsaved, 2, "inspect", "nothing", "--picture", str(file), "--json")
    assert not (tmp_path / "missing").exists()


def test_a_restore_is_told_alike(mapsaved: service.Service) -> None:
    site = mapsaved.site
    done = []
    for name, way in (("passing local", ["--local"]), ("passing served", [])):
        site.run("--local", "save", name, "-o", f"{name}.img", check=0)
        named = site.run(*way, "list", "--guest", name, "--latest", "--names", check=0)
        assert named.stdout == f"{name}.img\n"
        before = _newest(mapsaved)
        result = site.run(*way, "restore", "--latest", name, "--json", check=0)
        assert (_newest(mapsaved) == before) is bool(way)
        done.append(shape(result.json()))
        emulated.end(emulated.socket_of(site, name))
        again = site.run(*way, "restore", f"{name}.img", "--json", check=3)
        done.append(shape(again.json()))
        (site.images / f"{name}.copy").write_bytes((site.images / f"{name}.img").read_bytes())
        gone = site.run(*way, "discard", f"{name}.img", f"{name}.copy", check=0)
        assert not list(site.images.glob(f"{name}*"))
        done.append(steady(gone.stdout))
    assert done[:3] == done[3:]


BAD = [
    (2, ("save", "dbb")),
    (3, ("save", "gone")),
    (3, ("save", "db", "--image", "there.img")),
    (3, ("check", "gone")),
    (3, ("check", "db", "--image", "there.img")),
    (2, ("save", "db", "--image", "a.partial")),
    (2, ("save", "db", "--policy", "nothing")),
    (2, ("restore", "nothing.img")),
    (6, ("restore", "damaged.img")),
    (2, ("verify", "nothing.img")),
    (6, ("verify", "damaged.img")),
    (6, ("verify", "there.img", "damaged.img", "nothing.img")),
    (2, ("inspect", "nothing.img")),
    (6, ("inspect", "damaged.img")),
    (2, ("check", "nothing.img")),
    (6, ("check", "damaged.img")),
    (3, ("discard", "there.img")),
    (2, ("discard", "nothing.img")),
    (3, ("discard", "there.img", "nothing.img")),
    (2, ("restore", "--latest", "gone")),
    (6, ("discard", "text.img")),
    (3, ("job", "run", "all")),
    (3, ("job", "check", "all")),
    (2, ("job", "run", "weekly")),
    (2, ("job", "check", "nightli")),
    (2, ("job", "prune", "weekly")),
    (2, ("job", "run", "weekly.yaml")),
]


@pytest.fixture(scope="module")
def _images(mapsaved: service.Service) -> None:
    """An image that is there, one that is damaged, and a file that is none."""
    images = mapsaved.site.images
    for name in ("there.img", "damaged.img"):
        mapsaved.site.run("--local", "save", "db", "-o", name, *RESUME, check=0)
    with (images / "damaged.img").open("r+b") as file:
        file.truncate(1 << 20)
    (images / "text.img").write_text("not an image")


@pytest.mark.usefixtures("_images")
@pytest.mark.parametrize(
    ("code", "arguments"),
    BAD,
    ids=lambda each: " ".join(map(str, each)) if isinstance(each, tuple) else "",
)
def test_what_fails_is_told_alike(
    mapsaved: service.Service, code: int, arguments: tuple[str, ...]
) -> None:
    same(mapsaved, code, *arguments, "--json")  # which says on stderr what it would without


def test_a_file_of_the_directory_of_the_jobs_is_the_services_others_are_not(
    mapsaved: service.Service, tmp_path: Path
) -> None:
    def runs() -> int:
        return len(mapsaved.get("/v1/operations?kind=job&limit=1000")["operations"])

    site, jobs = mapsaved.site, mapsaved.site.jobs
    before = runs()
    site.run("job", "run", jobs / "nightly.yaml", check=0)
    (tmp_path / "link").symlink_to(jobs)
    site.run("job", "run", tmp_path / "link/nightly.yaml", check=0)
    assert runs() == before + 2
    (tmp_path / "nightly.yaml").write_text((jobs / "nightly.yaml").read_text())
    site.run("job", "run", tmp_path / "nightly.yaml", check=0)
    assert runs() == before + 2
    broken = site.run("job", "run", jobs / "broken.yaml", "--json", check=2).json()
    assert broken["error"]["id"] == "config.invalid"
    missing = site.run("job", "run", jobs / "missing.yaml", "--json", check=2).json()
    assert missing["error"]["id"] == "config.missing"
    _add_job(site, "new", ["db"])
    try:
        new = site.run("job", "run", jobs / "new.yaml", "--json", check=2).json()
        assert new["error"]["id"] == "job.unknown"
        assert "reload" in new["error"]["hint"]
        site.run("--local", "job", "run", jobs / "new.yaml", check=0)
    finally:
        (jobs / "new.yaml").unlink()


def test_jobs_are_listed_with_their_last_run(mapsaved: service.Service) -> None:
    mapsaved.site.run("job", "run", "nightly", check=0)
    local, served = both(mapsaved, "job", "list", "--json")
    found = served.json()
    for each in local.json()["jobs"]:
        line = next(line for line in found["jobs"] if line["name"] == each["name"])
        assert {**line, "last_run": None, "next_run": None} == each
    assert local.json()["broken"] == found["broken"]
    lines = {each["name"]: each for each in found["jobs"]}
    assert lines["nightly"]["last_run"]["state"] == "done"
    assert lines["all"]["guests"] == ["db", "gone"]
    text = mapsaved.site.run("job", "list", check=0).stdout
    assert "INVALID: " in text
    assert "broken.yaml" in text
    assert re.search(r"^nightly +1 +- +\S+ \S+ done", text, re.MULTILINE)


def test_an_image_elsewhere_is_done_here(mapsaved: service.Service, tmp_path: Path) -> None:
    before = _newest(mapsaved)
    site, image = mapsaved.site, tmp_path / "elsewhere.img"
    site.run("save", "db", "-o", image, *RESUME, check=0)
    for command in ("verify", "inspect", "check"):
        assert str(image) in site.run(command, image, check=0).stdout
    site.run("discard", image, "--yes", check=0)
    assert _newest(mapsaved) == before
    assert not image.exists()
    # The same directory by another name is still the service's.
    (tmp_path / "link").symlink_to(site.images)
    site.run("save", "db", "-o", tmp_path / "link/by-link.img", *RESUME, check=0)
    assert _newest(mapsaved) != before
    assert (site.images / "by-link.img").exists()


def test_a_file_here_of_that_name_is_not_where_a_save_goes(
    mapsaved: service.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = mapsaved.site
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.img").write_text("mine")
    for command in (("check", "db"), ("save", "db", *RESUME)):
        before = _newest(mapsaved)
        site.run(*command, "-o", "here.img", check=0)
        assert _newest(mapsaved) != before, "the service was not asked"
    assert (site.images / "here.img").exists()
    assert (tmp_path / "here.img").read_text() == "mine"
    # Of those that are read, it is the one that is meant.
    assert "[image" in site.run("verify", "here.img", check=6).stderr


def test_a_policy_that_is_a_file_is_applied_here(
    mapsaved: service.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = mapsaved.site
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text('module: dac\nmode: "0640"\n')
    before = _newest(mapsaved)
    with_it = ("--policy", "own.yaml")
    site.run("check", "db", *with_it, check=0)
    site.run("save", "db", "-o", "own.img", *RESUME, *with_it, check=0)
    assert (site.images / "own.img").stat().st_mode & 0o777 == 0o640
    again = site.run("restore", "own.img", "--into", "qmp:nobody.qmp", *with_it, check=3)
    assert "nobody.qmp" in again.stderr
    assert _newest(mapsaved) == before, "the service had to do with it"


def test_an_image_that_only_the_service_can_see_is_checked(
    mapsaved: service.Service, tmp_path: Path
) -> None:
    """As it is for the service's operators, whom its image directory is closed to."""
    site = mapsaved.site
    site.run("save", "db", "-o", "hidden.img", "--replace", *RESUME, check=0)
    blind = cli.Site(tmp_path / "blind", dict(site.guests), {"state": str(site.state)})
    blind.settings["socket"] = str(site.socket)
    blind.write()
    shown = blind.run("check", "hidden.img", check=0).stdout
    assert shown.startswith(f"{site.images / 'hidden.img'}: valid, guest db")
    assert "[guest.unknown]" in blind.run("check", "hiden.img", check=2).stderr


def test_another_state_directory_is_no_business_of_the_service(
    mapsaved: service.Service, tmp_path: Path
) -> None:
    other = cli.Site(tmp_path / "other")
    other.settings = {"socket": str(mapsaved.site.socket)}
    other.add_guest("db", emulated.socket_of(mapsaved.site, "db"))
    before = _newest(mapsaved)
    done = other.run("save", "db", *RESUME, "--json", check=0).json()
    assert done["image"].startswith(str(other.images))
    assert _newest(mapsaved) == before


def test_a_socket_that_nobody_listens_at_is_no_service(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        mapsaved.kill()
    assert site.socket.exists()
    assert site.run("list", check=0).stdout.startswith("no images")
    for command in (["ps"], ["wait", "0"], ["cancel", "0"], ["logs", "0"]):
        assert "[service.unreachable]" in site.run(*command, check=3).stderr


def test_a_pinned_image_is_kept(mapsaved: service.Service) -> None:
    site = mapsaved.site
    replacing = ("save", "db", "-o", "kept", "--replace", *RESUME)
    site.run(*replacing, "--note", "before the upgrade", check=0)
    _, served = same(mapsaved, 0, "pin", "kept")
    assert served.stdout == f"{site.images / 'kept'}: pinned\n"
    for words in (("discard", "kept", "--yes"), replacing):
        refused, _ = same(mapsaved, 3, *words, "--json")
        assert "is pinned" in refused.error()["message"]
        assert "unpin kept" in refused.error()["hint"]
    shown, _ = same(mapsaved, 0, "inspect", "kept")
    assert "native format, pinned\n" in shown.stdout
    assert "  note       before the upgrade\n" in shown.stdout
    line = r"saved, pinned .* before the upgrade +kept$"
    assert re.search(line, site.run("list", check=0).stdout, re.MULTILINE)
    same(mapsaved, 0, "unpin", "kept", "--json")
    site.run("discard", "kept", "--yes", check=0)
