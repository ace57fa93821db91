"""A user without rights: what is refused says so, by id, exit code and hint; nothing is silent."""

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import errors, tls_files
from mapsave.errors import permissions
from mapsave.operations import restored_notes
from mapsave.service import sockets

from tests.image import build
from tests.kit import cli, emulated
from tests.kit.libvirtd import NOBODY
from tests.kit.nobody import all_as_nobody, as_nobody

pytestmark = pytest.mark.root
IMAGE = "one.mapsave"
WRONG_HINTS = ("free some space", "room there", "make room", "bug")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others may enter, which that of a test is not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def shared(place: Path) -> cli.Site:
    """A set-up that others may look at."""
    site = cli.Site(place / "site")
    for path in (site.directory, site.images, site.state):
        path.chmod(0o755)
    job = site.directory / "nightly.yaml"
    job.write_text("job: nightly\nguests: [web01]\nkeep: {last: 1}\n")
    return site


def refused(results: list[cli.Result]) -> None:
    """Each says that it is not permitted, by whom it would be, and nothing that does not help."""
    for result in results:
        assert result.returncode == 7, result
        found = result.json()
        if "checks" in found:
            reason, *_ = (line["detail"] for line in found["checks"] if not line["ok"])
            assert "belongs to root, mode 0" in reason, result
            continue
        lines = [*found.get("guests", ()), *found.get("operations", ())]
        reasons = [line["error"] for line in lines] if lines else [found["error"]]
        for error in reasons:
            assert error["id"] == "permission.denied", result
            assert "mapsave runs as nobody" in error["message"], result
            assert "belongs to root, mode 0" in error["message"], result
            assert "run mapsave as root, or change owner or mode of" in error["hint"], result
            assert not any(words in str(error) for words in WRONG_HINTS), result


GUEST = (("check", "web01"), ("save", "web01"), ("save-all",), ("save-all", "--dry-run"))
IMAGES = (
    *(("restore", IMAGE), ("inspect", IMAGE), ("verify", IMAGE), ("check", IMAGE)),
    ("discard", IMAGE, "--yes"),
)
RECOVERY = (("recover",), ("recover", "--dry-run"), ("restore-all",))


def test_not_permitted_is_said_of_everything(shared: cli.Site) -> None:
    job = shared.directory / "nightly.yaml"
    jobs = (("job", "run", job), ("job", "check", job))
    emulate = ("emulate", "--memory", "4M", "--qmp", shared.images / "new.qmp")
    with emulated.guest(shared, "web01") as monitor:
        shared.run("save", "web01", "--image", IMAGE, "--then", "resume", check=0)
        refused(all_as_nobody(shared, [GUEST[0], GUEST[3], jobs[1], emulate]))  # the monitor
        monitor.chmod(0o777)
        refused(all_as_nobody(shared, [*GUEST, *IMAGES, *RECOVERY, *jobs]))  # what is in the state
        shared.state.chmod(0o700)
        refused(all_as_nobody(shared, [*GUEST, *RECOVERY, *jobs, ("restore-all", "--dry-run")]))
        for path in shared.state.iterdir():
            shutil.rmtree(path)
        shared.state.chmod(0o777)
        refused(all_as_nobody(shared, [*GUEST, *jobs, emulate]))  # an image cannot be made
        shared.images.chmod(0o700)
        refused(all_as_nobody(shared, [*GUEST, *IMAGES, ("list",), ("job", "prune", job), *jobs]))
        job.chmod(0o600)
        refused(all_as_nobody(shared, [*jobs, ("job", "prune", job)]))
        shared.config.chmod(0o600)
        refused(all_as_nobody(shared, [*GUEST, ("list",), ("config", "show"), ("serve",)]))
        assert emulated.status(monitor) == "running"


def test_jobs_directory_that_may_not_be_read(shared: cli.Site) -> None:
    shared.jobs.mkdir(mode=0o700)
    refused(all_as_nobody(shared, [("job", verb, "nightly") for verb in ("run", "check", "prune")]))
    (broken,) = as_nobody(shared, "job", "list", check=0).json()["broken"]
    assert broken["error"]["id"] == "permission.denied"


def test_socket_of_the_service_in_a_directory_of_others(shared: cli.Site) -> None:
    shared.state.chmod(0o777)
    refused([as_nobody(shared, "serve")])


# --- images that may not be read


def test_images_that_may_not_be_read_are_listed(shared: cli.Site) -> None:
    build.Image().built().write(shared.images / "mine")
    build.Image().built().write(shared.images / "theirs")
    (shared.images / "mine").chmod(0o644)
    (shared.images / "theirs").chmod(0o600)
    os.mkfifo(shared.images / "fifo", 0o600)
    (shared.images / "directory").mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(shared.images / "socket"))
        some = as_nobody(shared, "list", check=0)
    states = {line["name"]: line["state"] for line in some.json()["images"]}
    assert states == {"mine": "saved", "theirs": "unreadable"}
    assert "warning: 1 of 2 images cannot be read" in some.stderr
    assert "[permission.denied]" in some.stderr
    (shared.images / "mine").chmod(0o600)
    none, named = all_as_nobody(shared, [("list",), ("list", shared.images)])
    for each in (none, named):
        assert each.returncode == 7, each
        assert [line["state"] for line in each.json()["images"]] == ["unreadable"] * 2
        assert "warning: 2 of 2 images cannot be read" in each.stderr
    listed = shared.run("list", check=0)
    assert (listed.stderr, "unreadable" in listed.stdout) == ("", False)


def test_pruning_warns_of_images_that_may_not_be_read(shared: cli.Site) -> None:
    build.Image().built().write(shared.images / "theirs")
    (shared.images / "theirs").chmod(0o600)
    shared.add_guest("web01", shared.directory / "web01.qmp")
    done = as_nobody(shared, "job", "prune", shared.directory / "nightly.yaml", check=0)
    assert "1 images cannot be read" in done.stderr


# --- what refuses


@pytest.fixture
def nobody() -> Iterator[None]:
    """Be another user for the test; files are his to look at."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_refuses_is_found(place: Path, request: pytest.FixtureRequest) -> None:
    closed, readable = place / "closed", place / "file"
    closed.mkdir(mode=0o700)
    (closed / "file").touch()
    readable.touch(mode=0o644)
    request.getfixturevalue("nobody")
    by_directory = errors.denied("no", closed / "file" / "deeper")
    assert by_directory.data == {"path": str(closed), "owner": "root", "mode": "0700"}
    assert errors.denied("no", readable, os.W_OK).data["path"] == str(readable)
    assert errors.denied("no", place / "new").data["path"] == str(place)
    other = errors.denied("no", readable)
    assert (other.data, other.message) == ({}, "no")
    assert other.hint is not None and "SELinux" in other.hint


@pytest.mark.parametrize("number", [1, 13])  # EPERM, EACCES
def test_permission_is_told_from_the_rest(number: int, place: Path) -> None:
    def of(number: int) -> errors.MapsaveError:
        error = OSError(number, "words")
        return permissions.of_os_error(
            error, "no", place, otherwise=errors.NoRoom, hint="free some space"
        )

    assert (of(number).id, of(28).id) == ("permission.denied", "check.room")
    assert of(number).hint != of(28).hint == "free some space"


def test_image_and_note_that_may_not_be_written(
    place: Path, request: pytest.FixtureRequest
) -> None:
    """Neither can be marked, and for want of rights both: it is no fault of the disk."""
    request.getfixturevalue("nobody")

    def marking() -> None:
        (place / "image").touch()

    with pytest.raises(PermissionError):
        restored_notes._both(place, "image", uuid.uuid4(), "restored", marking)


def test_files_of_the_service(place: Path, request: pytest.FixtureRequest) -> None:
    key = place / "key.pem"
    key.touch(mode=0o600)
    request.getfixturevalue("nobody")
    named = tls_files._named("service.listen.key", key)
    with pytest.raises(errors.NotPermitted, match=r"service\.listen\.key"), named:
        key.read_bytes()
    with pytest.raises(errors.NotPermitted), sockets.unix(place / "new.sock"):
        pass
