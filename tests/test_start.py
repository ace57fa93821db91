"""How a process of mapsave begins and ends: whatever its streams are, and Ctrl-C at once."""

import configparser
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import yaml

from tests.kit import cli, command_line, processes, service, tree, wait, warm

# What becomes mapsave whose output no one can read.
_BROKEN = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
os.dup2(writer, 2)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def shell(redirected: str) -> list[str]:
    return ["sh", "-c", f'exec "$@" {redirected}', "sh"]


STREAMS = {
    "stdin closed, stderr full": shell("<&- 2>/dev/full"),
    "stdout closed": shell(">&-"),
    "stderr closed": shell("2>&-"),
    "all closed": shell("<&- >&- 2>&-"),
    "stdout full": shell(">/dev/full"),
    "readers gone": [sys.executable, "-c", _BROKEN],
}
# One command line of each command, its exit code, and whether it prints anything on stdout. In this
# order: the guest is saved and restored again.
LINES = (
    ("check toy", 0, True),
    ("plan toy", 0, True),
    ("probe", 0, True),
    ("job list", 0, True),
    ("job check nightly", 0, True),
    ("job run nightly", 0, True),
    ("job prune nightly", 0, True),
    ("checkpoint toy -o other", 3, False),
    ("save toy -o image", 0, True),
    ("verify image", 0, True),
    ("inspect image", 0, True),
    ("diff image image", 0, True),
    ("prove image", 0, True),
    ("export nosuch -o archive", 2, False),
    ("import nosuch", 2, False),
    ("core image -o out/core", 3, False),
    ("list", 0, True),
    ("guests", 0, True),
    ("restore image", 0, True),
    ("save-all", 0, True),
    ("restore-all --discard", 0, True),
    ("pin image", 0, True),
    ("unpin image", 0, True),
    ("warm image --all", 0, True),
    ("save-all nosuch", 2, False),
    ("save toy -o image", 3, False),
    ("restore image", 3, False),
    ("clone image", 3, False),
    ("discard image", 0, True),
    ("discard image", 2, False),
    ("guard toy", 0, True),
    ("recover", 0, True),
    ("config show", 0, True),
    ("config schema", 0, True),
    ("config policies", 0, True),
    ("completion bash", 0, True),
    ("fleet agent", 2, False),
    ("ps", 3, False),
    ("wait nosuch", 3, False),
    ("cancel nosuch", 3, False),
    ("logs nosuch", 3, False),
    ("status", 3, False),
    ("reload", 3, False),
    ("events", 3, False),
    ("serve --help", 0, True),
    ("setup systemd --help", 0, True),
    ("setup apparmor --help", 0, True),
    ("setup selinux --help", 0, True),
    ("setup memory toy", 2, False),
    ("emulate --memory 64M", 2, False),
    ("fleet hosts --fleet nosuch", 2, False),
    ("fleet guests --fleet nosuch", 2, False),
    ("fleet images --fleet nosuch", 2, False),
    ("fleet ps --fleet nosuch", 2, False),
    ("fleet run nightly --fleet nosuch", 2, False),
    ("fleet evacuate here --fleet nosuch", 2, False),
    ("fleet return here --fleet nosuch", 2, False),
    ("fleet cancel 1 --fleet nosuch", 2, False),
    ("fleet wait 1 --fleet nosuch", 2, False),
    ("fleet logs --fleet nosuch", 2, False),
    ("fleet status --fleet nosuch", 2, False),
    ("fleet check --fleet nosuch", 2, False),
    ("fleet schema", 0, True),
    ("fleet scheduler --fleet nosuch", 2, False),
    ("fleet init --fleet nosuch", 2, False),
    ("fleet migrate --fleet nosuch", 2, False),
    ("fleet host add here --fleet nosuch", 2, False),
    ("fleet host remove here --fleet nosuch", 2, False),
    ("fleet operator add alice --fleet nosuch", 2, False),
    ("fleet operator remove alice --fleet nosuch", 2, False),
    ("--help", 0, True),
    ("--version", 0, True),
)


def test_there_is_a_line_of_each_command() -> None:
    known = {
        context.command_path.removeprefix("mapsave ")
        for context in command_line.contexts()
        if not isinstance(context.command, click.Group)
    }
    found = {name for name in known for line, _, _ in LINES if f" {line} ".count(f" {name} ")}
    assert found == known


@pytest.fixture
def toy(site: cli.Site) -> Iterator[cli.Site]:
    """A site with an emulated guest and a job."""
    site.add_guest("toy", emulator={"memory": "1M"}, policy="none")
    site.add_job("nightly", guests=["toy"], save={"then": "resume"})
    with service.emulated_ended(site):
        yield site


def every_other(toy: cli.Site, kind: int) -> Iterator[tuple[str, int, bool]]:
    """Yield half of the lines, the others for the next kind of trouble; run these as usual.

    Under trouble each costs a start of Python, and all go through the same ``start``.
    """
    for number, line in enumerate(LINES):
        if number % 2 == kind % 2:
            yield line
        else:
            toy.run(*line[0].split())


@pytest.mark.parametrize("streams", STREAMS)
def test_every_command_ends_as_it_has_to(toy: cli.Site, streams: str) -> None:
    debug = ["--debug"] if streams in ("all closed", "readers gone") else []
    for words, code, prints in every_other(toy, list(STREAMS).index(streams)):
        expected = 1 if streams == "stdout full" and prints and not code else code
        done = toy.run(*debug, *words.split(), under=STREAMS[streams])
        assert done.returncode == expected, done
        assert "Traceback" not in done.stdout, done
        if streams in ("stdin closed, stderr full", "stderr closed"):
            assert bool(done.stdout) is prints, done
        if streams in ("stdout closed", "stdout full"):
            assert bool(done.stderr) is bool(expected), done


@pytest.mark.parametrize("streams", ["all closed", "readers gone"])
def test_the_service_too(toy: cli.Site, streams: str) -> None:
    with service.running(toy, command=[*STREAMS[streams], *cli.COMMAND]) as mapsaved:
        found = mapsaved.done(kind="save", guest="toy", save={"then": "resume"})
        assert mapsaved.stop() == 0
    toy.run("verify", found["image"], check=0)


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "import os; from mapsave.cli import streams; streams.prepare();"
        "image = os.open('image', os.O_RDWR | os.O_CREAT); os.system('echo line; echo line >&2');"
        "print('line'); os.write(2, b'line'); os._exit(os.fstat(image).st_size + image - 3)"
    )
    command = [*shell("<&- >&- 2>&-"), sys.executable, "-c", program]
    with processes.running(
        command, cwd=tmp_path, env={"PYTHONPATH": tree.PYTHONPATH}, close_fds=True
    ) as process:
        assert process.wait(wait.LONG) == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_without_room_is_told_and_is_no_bug(options: list[str]) -> None:
    failed = cli.mapsave("config", "show", *options, under=shell(">/dev/full"), check=1)
    assert failed.stderr.count("[output.failed]") == 1


def test_installed_command_is_the_one_that_leaves_at_once() -> None:
    configured = configparser.ConfigParser()
    configured.read(tree.ROOT / "setup.cfg")
    scripts = configured["options.entry_points"]["console_scripts"].split("\n")
    assert "mapsave = mapsave.cli.start:command" in scripts
    program = "import atexit; atexit.register(print, 'late'); from mapsave.cli import {}"
    said = {}
    for call in ("main; main.main(['--version'])", "start; start.command()"):
        with processes.running(
            [sys.executable, "-c", program.format(call), "--version"],
            cwd=tree.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            said[call] = process.communicate(timeout=wait.LONG)[0]
    version = cli.mapsave("--version").stdout
    assert list(said.values()) == [version + "late\n", version]


# Ctrl-C while modules are loaded, which is most of the first tenth of a second.

_LOADED = ("mapsave.cli.streams", "click.core", "mapsave.errors", "mapsave.cli.options")


@contextmanager
def loading(*arguments: str, after: str) -> Iterator[subprocess.Popen[str]]:
    """Start mapsave, and yield it where it has loaded the module ``after``."""
    with cli.started(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"}) as process:
        assert process.stderr is not None
        # "import time:       105 |        105 |   encodings.aliases"
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == after:
                break
        yield process


@pytest.mark.parametrize("after", _LOADED)
def test_interrupted_while_it_is_loaded(site: cli.Site, after: str) -> None:
    for words in (["list"], ["save", "toy"]):
        with loading("--config", str(site.config), *words, after=after) as process:
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=wait.LONG)
        assert "Traceback" not in stdout + stderr
        assert process.returncode in (-signal.SIGINT, 9, 0 if words == ["list"] else 2)


def test_one_that_ignores_interrupts_still_does() -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from mapsave.cli import start; import atexit;"
        "atexit.register(lambda: print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN));"
        "start.run(['--version'])"
    )
    with processes.running(
        [sys.executable, "-c", program], cwd=tree.ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.communicate(timeout=wait.LONG)[0].endswith("True\n")


def test_a_service_that_is_stopped_before_it_starts(site: cli.Site) -> None:
    """The signal comes when the command line has been read, and nothing else waits for it."""
    program = (
        "import os, sys\n"
        "from mapsave.cli import interruption, start\n"
        "wait = interruption._Signals.wait\n"
        "def late(*given):\n"
        "    found = wait(*given)\n"
        "    os.kill(os.getpid(), interruption.signal.SIGTERM)\n"
        "    return found\n"
        "interruption._Signals.wait = late\n"
        "start.run(sys.argv[1:])\n"
    )
    words = ("--config", site.config, "serve")
    with warm.cold():  # the work of a fork may have ended before anything waits for it
        stopped = cli.mapsave(*words, command=[sys.executable, "-c", program], check=9)
    assert "interrupted by SIGTERM" in stopped.stderr


# Few open files for mapsave itself.


@pytest.mark.parametrize(("kind", "most"), list(enumerate([5, 21, 26])))
def test_with_few_open_files_every_command_ends_as_it_has_to(
    toy: cli.Site, kind: int, most: int
) -> None:
    """With less Python itself does not start."""
    toy.run("check", "toy", check=0)
    for words, _, _ in every_other(toy, kind):
        done = toy.run(*words.split(), under=["prlimit", f"--nofile={most}:{most}"])
        assert done.returncode != 1, done
        if most == 5:
            assert (done.returncode, "[check.limits]" in done.stderr) == (3, True), done


def test_operations_wait_for_each_others_open_files(toy: cli.Site) -> None:
    names = [f"toy{number}" for number in range(6)]
    for name in names:
        toy.add_guest(name, emulator={"memory": "1M"}, policy="none")
        toy.run("check", name, check=0)  # starts it
    path = toy.directory / "all.yaml"
    job = {"job": "all", "guests": names, "concurrency": 6, "save": {"then": "resume"}}
    path.write_text(yaml.safe_dump(job))
    few = ["prlimit", "--nofile=40:40"]
    assert toy.run("job", "run", path, "--json", under=few, check=0).json()["saved"] == 6
    words = ("save-all", "--parallel", "6", "--then", "resume", *names, "--json")
    assert toy.run(*words, under=few, check=0).json()["saved"] == 6
