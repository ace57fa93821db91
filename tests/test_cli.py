"""The command line itself: help, usage errors, configuration, and that it starts quickly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mapsave import errors
from mapsave.cli import output
from mapsave.cli.options import Globals

from tests.kit import cli, processes, tree, wait

COMMANDS = (
    *("pin", "unpin", "warm", "guests", "status", "reload", "events"),
    *(
        "save",
        "checkpoint",
        "restore",
        "check",
        "inspect",
        "diff",
        "verify",
        "prove",
        "export",
        "import",
        "core",
        "list",
        "discard",
        "recover",
        "emulate",
    ),
    *("plan", "probe", "guard"),
    *("clone", "save-all", "restore-all", "serve", "ps", "wait", "cancel", "logs"),
    *(
        "job",
        "job run",
        "job check",
        "job prune",
        "job list",
        "config",
        "config show",
        "config schema",
        "config policies",
        "setup",
        "setup systemd",
        "setup apparmor",
        "setup selinux",
        "setup memory",
        "completion",
    ),
    *(
        "fleet",
        "fleet agent",
        "fleet hosts",
        "fleet guests",
        "fleet images",
        "fleet ps",
        "fleet run",
        "fleet evacuate",
        "fleet return",
        "fleet cancel",
        "fleet wait",
        "fleet logs",
        "fleet status",
        "fleet check",
        "fleet schema",
        "fleet scheduler",
        "fleet init",
        "fleet migrate",
        "fleet host",
        "fleet host add",
        "fleet host remove",
        "fleet operator",
        "fleet operator add",
        "fleet operator remove",
    ),
)
HEAVY = {"qemu.qmp", "yaml", "tenacity"}
GLOBAL_OPTIONS = ("--config", "--host", "--json", "--debug", "--local", "--quiet", "--progress")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = cli.mapsave(*command.split(), "--help", check=0)
    assert shown.stdout.startswith(f"Usage: mapsave {command} ")
    for option in (*GLOBAL_OPTIONS, "--help"):
        assert option in shown.stdout
    assert shown.stderr == ""
    assert cli.mapsave(*command.split(), "-h", check=0).stdout == shown.stdout


def test_help_names_every_command_and_exit_code() -> None:
    shown = cli.mapsave("--help", check=0).stdout
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} == {word for word in COMMANDS if " " not in word}
    assert all(len(line.split()) > 1 for line in listed), "a command without a description"
    for meaning in ("0 done", "3 refused", "4 save failed", "5 restore failed", "9 interrupted"):
        assert meaning in shown


def test_version() -> None:
    assert cli.mapsave("--version", check=0).stdout.startswith("mapsave, version 0.")


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY | {"asyncio"}),
        (["--version"], HEAVY | {"asyncio"}),
        (["nosuch"], HEAVY | {"asyncio"}),
        (["save", "--help"], HEAVY | {"asyncio", "logging"}),
        (["restore", "--help"], HEAVY | {"asyncio", "logging"}),
        (["inspect", "--help"], HEAVY | {"asyncio"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_libraries_are_not_imported_in_vain(arguments: list[str], unwanted: set[str]) -> None:
    program = (
        "import sys\n"
        "from mapsave.cli import main\n"
        "try:\n"
        "    main.main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    with processes.running(
        [sys.executable, "-c", program, *arguments],
        cwd=tree.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        loaded = process.communicate(timeout=wait.LONG)[1].splitlines()[-1].split()
    assert "mapsave.cli.main" in loaded
    assert not unwanted & set(loaded)


_NOT_ASKED_FOR = {"mapsave.proof", "mapsave.operations.checkpoint"}


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["list"], HEAVY - {"yaml"} | {"asyncio"}),
        (["config", "show"], HEAVY - {"yaml"} | {"asyncio"}),
        (["check", "toy"], HEAVY - {"yaml", "qemu.qmp"}),
        (["save", "toy"], HEAVY - {"yaml", "qemu.qmp"} | _NOT_ASKED_FOR),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_good_configuration_costs_no_library_in_vain(
    site: cli.Site, arguments: list[str], unwanted: set[str]
) -> None:
    site.add_guest("toy", emulator={"memory": "1M"}, policy="none")
    site.run("save", "toy", "--then", "resume", check=0)  # which starts the emulator
    try:
        found = site.run(*arguments, check=0, env={"PYTHONPROFILEIMPORTTIME": "1"}).stderr
    finally:
        site.run("save", "toy", "-o", "end", check=0)  # which ends it
    # "import time:       105 |        105 |   encodings.aliases"
    lines = (line.split("|") for line in found.splitlines() if line.startswith("import time:"))
    loaded = {line[-1].strip() for line in lines}
    assert {"yaml", "mapsave.keys"} <= loaded
    in_vain = {"importlib.metadata", "difflib", "secrets", "xml.etree.ElementTree"}
    assert not (unwanted | in_vain) & loaded


def test_all_of_a_long_output_arrives(site: cli.Site) -> None:
    site.guests = {f"guest-{n}": {"qmp": f"/run/{n}"} for n in range(5_000)}
    site.write()
    shown = site.run("config", "show", "--json", check=0)
    assert len(shown.json()["guests"]) == 5_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sav"], "Did you mean 'save'?"),
        (["job", "rum"], "Did you mean 'run'?"),
        (["verify"], "Missing argument 'IMAGE...'"),
        (["restore"], "either IMAGE or --latest GUEST"),
        (["restore", "image", "--latest", "web01"], "either IMAGE or --latest GUEST"),
        (["list", "--sort", "date"], "'saved', 'guest', 'size', 'name'"),
        (["save", "web01", "--thn", "quit"], "--then"),
        (["save", "web01", "web02"], "unexpected extra argument"),
        (["save", "web01", "--then", "explode"], "'quit', 'resume', 'leave'"),
        (["save", "web01", "--channels", "0"], "1 to 255"),
        (["save", "web01", "--timeout", "soon"], "soon"),
        (["save", "web01", "--timeout", "0"], "longer than 0"),
        (["restore", "web01", "--timeout", "0s"], "longer than 0"),
        (["save-all", "--deadline", "0"], "longer than 0"),
        (["restore", "image", "--into", "socket"], "qmp:PATH"),
        (["emulate", "--memory", "64M"], "--qmp"),
        (["config", "schema", "guest"], "'manager', 'job'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_say_what_is_meant(arguments: list[str], words: str) -> None:
    for more in ([], ["--json"]):
        failed = cli.mapsave(*arguments, *more, check=2)
        assert words in failed.stderr
        assert "[usage]" in failed.stderr
    assert failed.json()["error"]["id"] == "usage"


def test_nearest_guest_is_named(site: cli.Site, tmp_path: Path) -> None:
    site.add_guest("web01", tmp_path / "qmp")
    failed = site.run("save", "wbe01", check=2)
    assert "[guest.unknown]" in failed.stderr
    assert "'web01'" in failed.stderr
    assert failed.stdout == ""


def test_traceback_only_if_asked(site: cli.Site) -> None:
    # tests.kit.cli fails on any traceback, so the one that was asked for is read past it.
    assert "mapsave:" in site.run("inspect", "nosuch", check=2).stderr
    with site.start("--debug", "inspect", "nosuch") as process:
        stderr = process.communicate(timeout=wait.LONG)[1]
    assert process.returncode == 2
    assert "Traceback (most recent call last)" in stderr
    assert "[image.not_found]" in stderr


@pytest.mark.parametrize("cls", [errors.ServiceLost, errors.MonitorLost, errors.OutputFailed])
def test_traceback_only_for_a_bug(
    cls: type[errors.MapsaveError], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other errors have the exit code 1 as well, and are none of ours."""
    assert output.failure(cls("words"), Globals()) == 1
    assert capsys.readouterr().err == f"mapsave: words [{cls.id}]\n"
    try:
        raise ZeroDivisionError("mine")
    except ZeroDivisionError as error:
        assert output.failure(error, Globals()) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_names_cannot_play_tricks_on_a_terminal(site: cli.Site) -> None:
    failed = site.run("inspect", "red\x1b[31m\nmapsave: all is well", check=2)
    assert "\x1b" not in failed.stderr
    assert "\nmapsave: all is well" not in failed.stderr


def test_config_show_is_a_configuration_again(site: cli.Site, tmp_path: Path) -> None:
    site.settings["save"] = {"channels": 4, "then": "resume"}
    site.add_guest("web01", tmp_path / "qmp", ["qemu", "-m", "4096"], policy="none")
    site.add_guest("toy", emulator={"memory": "64M"})
    shown = site.run("config", "show", check=0).stdout
    assert shown.startswith(f"# from '{site.config}'\n")
    copy = tmp_path / "copy.yaml"
    copy.write_text(shown)
    again = cli.mapsave("--config", copy, "config", "show", check=0).stdout
    assert again.splitlines()[1:] == shown.splitlines()[1:]
    data = site.run("config", "show", "--json", check=0).json()
    assert data == yaml.safe_load(shown)
    assert data["guests"]["web01"]["launch"] == ["qemu", "-m", "4096"]
    assert data["guests"]["toy"]["emulator"]["memory"] == 64 << 20
    assert data["save"]["channels"] == 4


def test_configuration_is_found_by_variable(site: cli.Site, tmp_path: Path) -> None:
    found = cli.mapsave(
        "config", "show", "--json", check=0, env={"MAPSAVE_CONFIG": str(site.config)}
    ).json()
    assert found["images"] == str(site.images)
    other = tmp_path / "other.yaml"
    other.write_text("images: /elsewhere\n")
    # What is given on the command line wins.
    found = site.run("config", "show", "--json", check=0, env={"MAPSAVE_CONFIG": str(other)}).json()
    assert found["images"] == str(site.images)


def test_configuration_errors_name_line_and_nearest_key(site: cli.Site) -> None:
    site.config.write_text(f"images: {site.images}\nstte: /tmp\n")
    failed = site.run("list", check=2)
    assert f"{site.config}:2" in failed.stderr
    assert "state" in failed.stderr
    assert "[config.invalid]" in failed.stderr


@pytest.mark.parametrize("kind", ["manager", "job"])
def test_config_schema_describes_every_key(kind: str) -> None:
    schema = json.loads(cli.mapsave("config", "schema", kind, check=0).stdout)
    schema = schema.get("else", schema)  # a job of another kind is in its 'then'
    expected = {"manager": {"images", "state", "guests"}, "job": {"job", "guests", "save"}}[kind]
    assert schema["properties"].keys() >= expected
    assert schema["additionalProperties"] is False
    assert all("description" in each for each in schema["properties"].values())


def test_mapsaved_is_mapsave_serve(site: cli.Site) -> None:
    """With the same options before it: here a configuration that is wrong, which ends it."""
    site.config.write_text("stte: /tmp\n")
    with processes.running(
        [
            *(sys.executable, "-c", "from mapsave.cli import daemon; daemon.main()"),
            *("--config", str(site.config)),
        ],
        cwd=tree.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stdout, stderr = process.communicate(timeout=wait.LONG)
    assert (process.returncode, stdout) == (2, "")
    assert f"{site.config}:1" in stderr


@pytest.mark.parametrize(
    "command",
    [("ps",), ("status",), ("reload",), ("events",), ("logs", "a"), ("wait", "a"), ("cancel", "a")],
)
def test_without_a_service_its_commands_say_so(site: cli.Site, command: tuple[str, ...]) -> None:
    failed = site.run(*command, check=3)
    assert "[service.unreachable]" in failed.stderr
    assert "mapsave serve" in failed.stderr
