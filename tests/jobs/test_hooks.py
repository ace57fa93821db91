"""Hooks are real executables here: what they get, what they may say, and how they are ended."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import stat
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mapsave
import pytest
from mapsave import errors
from mapsave.hooks import process as hook_process
from mapsave.hooks import runner
from mapsave.monitor import process
from mapsave.service_settings import Hooks, Moment

from tests.kit import processes, wait

FACTS = {
    "operation": "0123456789ab",
    "guest": "web01",
    "job": None,
    "image": "/i/web01.mapsave",
    "domain": "web",
    "uri": "qemu:///system",
    "socket": None,
}
AFTER: tuple[Moment, ...] = ("after_save", "on_failure", "after_restore")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "hooks.d"
    made.mkdir(mode=0o755)
    return made


def write(directory: Path, name: str, script: str, shell: str = "/bin/sh") -> Path:
    path = directory / name
    path.write_text(f"#!{shell}\n" + textwrap.dedent(script))
    path.chmod(0o755)
    return path


def one(directory: Path, script: str, **settings: Any) -> Hooks:
    """Write the script as the one hook of each moment."""
    write(directory, "hook", script)
    moments = ("before_save", "before_restore", *AFTER)
    return Hooks(
        directory, **{**dict.fromkeys(moments, ("hook",)), "timeout": wait.LONG, **settings}
    )


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == level]


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait.until, condition)


async def appears(path: Path) -> str:
    """Wait until the hook has written the file, and return what is in it."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text().strip()


async def gone(pid: int) -> None:
    await until(lambda: process.start_time(pid) is None)


async def test_a_hook_gets_the_facts_and_nothing_else(directory: Path, tmp_path: Path) -> None:
    script = f"""\
        import json, os, sys
        found = {{"facts": json.load(sys.stdin), "env": dict(os.environ), "cwd": os.getcwd(),
                 "leads": os.getsid(0) == os.getpid(), "open": os.listdir("/proc/self/fd")}}
        json.dump(found, open({str(tmp_path / "found")!r}, "w"))
        """
    write(directory, "look", script, sys.executable)
    await runner.run(Hooks(directory, before_save=("look",)), "before_save", FACTS)
    found = json.loads((tmp_path / "found").read_text())
    expected = {"moment": "before_save", **FACTS, "mapsave": mapsave.__version__}
    assert found["facts"] == expected
    found["env"].pop("LC_CTYPE", None)  # Python's own doing (PEP 538)
    assert found["env"] == {
        "PATH": runner.PATH,
        "LANG": "C.UTF-8",
        "HOME": "/",
        "MAPSAVE_HOOK": "before_save",
        "MAPSAVE_OPERATION": "0123456789ab",
        "MAPSAVE_GUEST": "web01",
        "MAPSAVE_CLONE_OF": "",
        "MAPSAVE_JOB": "",
        "MAPSAVE_IMAGE": "/i/web01.mapsave",
        "MAPSAVE_DOMAIN": "web",
        "MAPSAVE_URI": "qemu:///system",
        "MAPSAVE_SOCKET": "",
        "MAPSAVE_OUTCOME": "",
    }
    assert (found["cwd"], found["leads"]) == ("/", True)
    # Standard input and outputs, the script twice (ours and the interpreter's), and listdir's.
    assert len(found["open"]) <= 6


async def test_hooks_run_in_order_and_those_of_the_job_behind(
    directory: Path, tmp_path: Path
) -> None:
    for name in ("first", "second", "third"):
        write(directory, name, f"echo {name} $MAPSAVE_HOOK >>{tmp_path}/order")
    configured = Hooks(directory, after_save=("second", "first"), before_save=("first",))
    await runner.run(configured, "after_save", FACTS, ("third",))
    written = (tmp_path / "order").read_text().splitlines()
    assert written == ["second after_save", "first after_save", "third after_save"]


async def test_a_program_that_is_no_script_runs_too(directory: Path) -> None:
    shutil.copy("/bin/cp", directory / "cp")
    # Without arguments cp fails, and says so by the name that it was called by.
    with pytest.raises(errors.HookRefused, match="exit status 1: Try 'cp --help'"):
        await runner.run(Hooks(directory, before_save=("cp",)), "before_save", FACTS)


@pytest.mark.parametrize(
    ("script", "words", "status"),
    [
        ("echo why >&2; exit 62", "hook 'hook' of before_save said no: why", 62),
        ("exit 62", "hook 'hook' of before_save said no", 62),
        ("echo a >&2; echo 'b\tc' >&2; echo >&2; exit 62", "said no: b\tc", 62),
        ("printf 'a\\033[2Jb' >&2; exit 62", r"said no: a\x1b[2Jb", 62),
        ("printf '\\377' >&2; exit 62", r"said no: \xff", 62),
        ("echo no; exit 3", "hook 'hook' of before_save failed with exit status 3", 3),
        ("echo no >&2; exit 1", "failed with exit status 1: no", 1),
        ("kill -KILL $$", "hook 'hook' of before_save was killed by SIGKILL", -signal.SIGKILL),
        ("kill -40 $$", "was killed by signal 40", -40),
    ],
)
async def test_a_hook_before_refuses(
    directory: Path, tmp_path: Path, script: str, words: str, status: int
) -> None:
    configured = one(directory, script)
    write(directory, "later", f"touch {tmp_path}/later")
    with pytest.raises(errors.HookRefused) as caught, nothing_left_open():
        await runner.run(configured, "before_save", FACTS, ("later",))
    assert caught.value.message.endswith(words)
    assert caught.value.data == {"hook": "hook", "moment": "before_save", "status": status}
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize("moment", AFTER)
@pytest.mark.parametrize("script", ["echo why >&2; exit 62", "echo why >&2; exit 1"])
async def test_a_hook_behind_changes_nothing(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: Moment, script: str
) -> None:
    configured = one(directory, script)
    write(directory, "later", f"touch {tmp_path}/later")
    await runner.run(configured, moment, FACTS, ("missing", "later"))
    refused, missing = lines(caplog, logging.WARNING)
    assert f"hook 'hook' of {moment}" in refused
    assert "why; the outcome does not change" in refused
    assert f"hook 'missing' of {moment} cannot be run: No such file or directory" in missing
    assert (tmp_path / "later").exists()


@pytest.mark.parametrize("where", ["hook", "directory"])
async def test_a_missing_hook_refuses(directory: Path, tmp_path: Path, where: str) -> None:
    place = directory if where == "hook" else tmp_path / "nowhere"
    with pytest.raises(errors.HookRefused, match="No such file or directory") as caught:
        await runner.run(Hooks(place, before_restore=("hook",)), "before_restore", FACTS)
    assert str(place / "hook") in str(caught.value.hint)


async def test_a_hook_is_named_not_pathed(directory: Path, tmp_path: Path) -> None:
    write(tmp_path, "outside", f"touch {tmp_path}/ran")
    with pytest.raises(errors.HookRefused, match="must be the name of an executable"):
        await runner.run(Hooks(directory), "before_save", FACTS, ("../outside",))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("first", ["#!/nowhere/sh\n", "no first line\n"])
async def test_a_hook_that_nothing_can_run_refuses(directory: Path, first: str) -> None:
    path = write(directory, "hook", "")
    path.write_text(first)
    with pytest.raises(errors.HookRefused, match="cannot be run"), nothing_left_open():
        await runner.run(Hooks(directory, before_save=("hook",)), "before_save", FACTS)


def _writable(path: Path) -> None:
    path.chmod(0o775)


def _by_all(path: Path) -> None:
    path.chmod(0o757)


def _plain(path: Path) -> None:
    path.chmod(0o644)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _nest(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _open_directory(path: Path) -> None:
    path.parent.chmod(0o777)


def _linked_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("spoil", "words", "mode", "hint"),
    [
        (_writable, "can be written by others", "0775", "chmod go-w"),
        (_by_all, "can be written by others", "0757", "chmod go-w"),
        (_plain, "is not executable", "0644", "chmod +x"),
        (_link, "is a symbolic link", "0777", "replace it with the file it points to"),
        (_pipe, "is not a regular file", None, "replace it with a"),
        (_nest, "is not a regular file", None, "replace it with a"),
        (_open_directory, "can be written by others", "0777", "chmod go-w"),
        (_linked_directory, "is a symbolic link", "0777", "replace it with the file it points to"),
    ],
)
async def test_a_hook_that_others_could_have_put_there_is_not_run(
    directory: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    words: str,
    mode: str | None,
    hint: str,
) -> None:
    configured = one(directory, f"touch {tmp_path}/ran")
    await runner.run(configured, "before_save", FACTS)
    (tmp_path / "ran").unlink()
    spoil(directory / "hook")
    with pytest.raises(errors.NotPermitted, match=words) as caught, nothing_left_open():
        await runner.run(configured, "before_save", FACTS)
    found = caught.value
    assert found.data["path"] in (str(directory), str(directory / "hook"))
    assert found.data["path"] in found.message
    assert mode is None or (found.data["mode"] == mode and f"mode {mode}" in found.message)
    assert found.data["owner"] == os.geteuid()
    assert hint in str(found.hint)
    await runner.run(configured, "after_save", FACTS)
    (warned,) = lines(caplog, logging.WARNING)
    assert words in warned
    assert not (tmp_path / "ran").exists()


@pytest.mark.root
@pytest.mark.parametrize("which", ["hook", "directory"])
async def test_a_hook_of_somebody_else_is_not_run(
    directory: Path, tmp_path: Path, which: str
) -> None:
    configured = one(directory, f"touch {tmp_path}/ran")
    path = directory if which == "directory" else directory / "hook"
    os.chown(path, 65534, -1)
    with pytest.raises(
        errors.NotPermitted, match=r"does not belong to root \(owner 65534"
    ) as found:
        await runner.run(configured, "before_save", FACTS)
    assert found.value.hint is not None
    assert f"chown root {path}" in found.value.hint
    assert not (tmp_path / "ran").exists()


async def test_what_was_checked_is_what_runs(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = one(directory, f"echo checked >{tmp_path}/ran")
    check = hook_process._check

    def check_and_swap(fd: int, path: str, kind: int) -> None:
        check(fd, path, kind)
        if kind == stat.S_IFREG:
            write(directory, "other", f"echo swapped >{tmp_path}/ran")
            os.replace(directory / "other", directory / "hook")

    monkeypatch.setattr(hook_process, "_check", check_and_swap)
    await runner.run(configured, "before_save", FACTS)
    assert (tmp_path / "ran").read_text() == "checked\n"


async def test_a_hook_need_not_read_its_input(directory: Path) -> None:
    facts = {**FACTS, "result": {"words": "x" * (4 << 20)}}
    with nothing_left_open():
        await runner.run(one(directory, "exit 0"), "before_save", facts)
        await runner.run(one(directory, "exec <&-; exit 0"), "before_save", facts)


async def test_large_facts_arrive_whole(directory: Path, tmp_path: Path) -> None:
    facts = {**FACTS, "result": {"words": "é" * (1 << 20), "path": Path("/image")}}
    await runner.run(one(directory, f"cat >{tmp_path}/got"), "before_save", facts)
    got = json.loads((tmp_path / "got").read_text())
    assert got["result"] == {"words": "é" * (1 << 20), "path": "/image"}


@pytest.mark.parametrize("image", ["a\0b", "\ud800"])
async def test_facts_that_no_environment_can_hold_refuse(directory: Path, image: str) -> None:
    configured = one(directory, "exit 0")
    with pytest.raises(errors.HookRefused, match="cannot be run"), nothing_left_open():
        await runner.run(configured, "before_save", {**FACTS, "image": image})


async def test_output_is_logged_line_by_line(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await runner.run(one(directory, "echo one; echo two; printf three"), "after_save", FACTS)
    said = [f"hook hook of after_save: {line}" for line in ("one", "two", "three")]
    assert lines(caplog) == said


async def test_lines_are_logged_as_they_come(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    os.mkfifo(tmp_path / "go")
    configured = one(directory, f"echo early; read line <{tmp_path}/go")
    running = asyncio.ensure_future(runner.run(configured, "before_save", FACTS))
    await until(lambda: bool(lines(caplog)))
    assert not running.done()
    await asyncio.to_thread((tmp_path / "go").write_text, "on\n")
    await running


@pytest.mark.parametrize("stream", [1, 2])
async def test_megabytes_of_output_are_read_but_not_kept(
    directory: Path, caplog: pytest.LogCaptureFixture, stream: int
) -> None:
    caplog.set_level(logging.INFO)
    script = f"yes 0123456789abcde | head -c 8M >&{stream}; echo last >&2; exit 62"
    with pytest.raises(errors.HookRefused, match=r"said no: last$"), nothing_left_open():
        await runner.run(one(directory, script), "before_save", FACTS)
    said = [line.partition(": ")[2] for line in lines(caplog)]
    kept = [line for line in said if line == "0123456789abcde"]
    assert len(kept) == hook_process.CAPTURED // 16
    assert sum("output is discarded" in line for line in said) == 1


@pytest.mark.parametrize("extra", [0, 1])
async def test_output_that_just_fits_is_kept(
    directory: Path, caplog: pytest.LogCaptureFixture, extra: int
) -> None:
    caplog.set_level(logging.INFO)
    # As the pipe holds that much, all of it may come in one piece, and what is over in the next.
    script = f"head -c {hook_process.CAPTURED} /dev/zero | tr '\\0' x; head -c {extra} /dev/zero"
    await runner.run(one(directory, script), "after_save", FACTS)
    said = [line.partition(": ")[2] for line in lines(caplog)]
    assert said[0] == "x" * hook_process.CAPTURED
    assert len(said) == 1 + extra


async def test_one_line_of_megabytes_is_cut(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await runner.run(one(directory, "head -c 4M /dev/zero | tr '\\0' x"), "after_save", FACTS)
    longest = max(len(line.partition(": ")[2]) for line in lines(caplog))
    assert longest == hook_process.CAPTURED


async def test_a_daemon_that_holds_the_output_is_not_waited_for(
    directory: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pid"
    configured = one(directory, f"echo kept >&2; sleep 600 & echo $! >{pids}; exit 62")
    with pytest.raises(errors.HookRefused, match="said no: kept"), nothing_left_open():
        await runner.run(configured, "before_save", FACTS)
    daemon = int(await appears(pids))
    assert process.start_time(daemon) is not None  # what a hook leaves running is its own affair
    processes.end(daemon)


async def test_last_words_of_a_child_that_ends_a_moment_later_count(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_process, "_LINGER", wait.LONG)  # its moment may be a long one
    script = "(sleep 0.1; echo late >&2) & exit 62"
    with pytest.raises(errors.HookRefused, match="said no: late"):
        await runner.run(one(directory, script), "before_save", FACTS)


@pytest.mark.parametrize("moment", ["before_save", "on_failure"])
async def test_a_hook_is_ended_after_its_time(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: Moment
) -> None:
    pids = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{pids}; echo hanging >&2; wait"
    configured = one(directory, script, timeout=3.0)  # enough to come so far on a busy machine
    words = "hook 'hook' of {} did not finish within 3 s: hanging"
    with nothing_left_open():
        if moment == "before_save":
            with pytest.raises(errors.HookRefused) as caught:
                await runner.run(configured, moment, FACTS)
            assert caught.value.message == words.format(moment)
            assert caught.value.data["status"] is None
        else:
            await runner.run(configured, moment, FACTS)
            assert words.format(moment) in lines(caplog, logging.WARNING)[0]
    await gone(int(await appears(pids)))  # its children too


POLITE = "trap 'sleep 0.2; echo told >{told}; exit 0' TERM"
STUBBORN = "trap 'echo told >{told}' TERM"
WAITING = "; echo $$ >{pid}; while :; do sleep 0.05; done"


@pytest.mark.parametrize("moment", ["before_save", "after_save"])
async def test_cancelled_it_waits_for_the_hook_to_end(
    directory: Path, tmp_path: Path, moment: Moment
) -> None:
    pid, told = tmp_path / "pid", tmp_path / "told"
    configured = one(directory, (POLITE + WAITING).format(pid=pid, told=told), timeout=600.0)
    with nothing_left_open():
        running = asyncio.ensure_future(runner.run(configured, moment, FACTS, grace=600.0))
        number = int(await appears(pid))
        running.cancel()
        await asyncio.wait({running}, timeout=wait.LONG)
        assert running.cancelled()
        assert process.start_time(number) is None
        assert told.read_text() == "told\n"


async def test_a_hook_that_does_not_end_when_told_is_killed(
    directory: Path, tmp_path: Path
) -> None:
    pid, told = tmp_path / "pid", tmp_path / "told"
    configured = one(directory, (STUBBORN + WAITING).format(pid=pid, told=told), timeout=3.0)
    with pytest.raises(errors.HookRefused, match="did not finish"), nothing_left_open():
        await runner.run(configured, "before_save", FACTS, grace=0.1)
    assert process.start_time(int(pid.read_text())) is None


async def test_a_second_cancellation_takes_no_time_from_the_hook(
    directory: Path, tmp_path: Path
) -> None:
    pid, begun, told = (tmp_path / name for name in ("pid", "begun", "told"))
    script = f"trap 'echo . >{begun}; sleep 0.5; echo told >{told}; exit 0' TERM" + WAITING
    configured = one(directory, script.format(pid=pid), timeout=600.0)
    with nothing_left_open():
        running = asyncio.ensure_future(runner.run(configured, "before_save", FACTS, grace=600.0))
        await appears(pid)
        running.cancel()
        await appears(begun)
        running.cancel()
        await asyncio.wait({running}, timeout=wait.LONG)
        assert running.cancelled()
        assert told.read_text() == "told\n"


async def test_without_hooks_nothing_is_opened(tmp_path: Path) -> None:
    await runner.run(Hooks(tmp_path / "nowhere"), "before_save", FACTS)
