"""The configuration: which file counts, what it may say, and what holds without one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapsave import config, errors, keys
from mapsave.cli import configuration
from mapsave.fleet_settings import Fleet
from mapsave.service_settings import DAY, Hooks, Listen, Service, Webhook
from msgspec import structs

from tests.kit import cli
from tests.kit.full import CONFIGURATION


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the machine's own configuration out; return the path where the test may put one."""
    path = tmp_path / "etc-manager.yaml"
    monkeypatch.setattr(config, "SYSTEM_FILE", path)
    return path


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        config.load(write(tmp_path / "m.yaml", text), {})
    return caught.value.message.removeprefix(f"{tmp_path}/")


def test_every_key_arrives(tmp_path: Path) -> None:
    source = write(tmp_path / "manager.yaml", CONFIGURATION)
    assert config.load(source, {}) == config.Config(
        images=tmp_path / "images",
        state=Path("/srv/state"),
        socket=tmp_path / "run/mapsave.sock",
        jobs=tmp_path / "jobs.d",
        policies=tmp_path / "../policies",
        launch_environment=("PATH", "LANG", "TZ"),
        guests={
            "web01": config.Guest(
                "web01",
                qmp=Path("/run/qemu/web01.qmp"),
                launch=(
                    *("qemu-system-x86_64", "-name", "web01", "-m", "4096"),
                    *("-sandbox", "on", "-append", ""),
                ),
                launch_environment=("PATH", "DISPLAY"),
                policy="selinux-svirt",
                priority=5,
            ),
            "db01": config.Guest(
                "db01", libvirt=config.LibvirtDomain("db-1", "qemu+ssh://host/system")
            ),
            "toy": config.Guest(
                "toy", emulator=config.EmulatedGuest(64 * 1024 * 1024, "sparse", True)
            ),
        },
        save=config.SaveSettings(
            "resume",
            True,
            "libvirt",
            "off",
            "on",
            "legacy",
            4,
            "off",
            "space",
            8 << 30,
            "none",
            "before",
        ),
        service=Service(
            operators=("ops", "wheel"),
            readers=("monitoring",),
            on_stop="cancel",
            concurrency=8,
            per_file_system=3,
            bandwidth=2 << 30,
            history=30 * DAY,
            stop_timeout=300.0,
            log="json",
            textfile=tmp_path / "metrics/mapsave.prom",
            listen=Listen(
                address="[::1]:8443",
                certificate=tmp_path / "tls/service.pem",
                key=tmp_path / "tls/service.key",
                clients=Path("/etc/pki/clients.pem"),
                operators=("alice",),
                readers=("grafana",),
                crl=tmp_path / "tls/revoked.pem",
            ),
        ),
        fleet=Fleet(
            dsn_file=tmp_path / "fleet.dsn",
            tls="require",
            ca=tmp_path / "tls/ca.pem",
            certificate=tmp_path / "tls/agent.pem",
            key=tmp_path / "tls/agent.key",
            host="rack1-a",
            state=Path("/srv/fleet"),
        ),
        hooks=Hooks(
            directory=tmp_path / "hooks.d",
            timeout=30.0,
            before_save=("freeze",),
            after_save=("thaw", "tell"),
            on_failure=("tell",),
            before_restore=("check",),
            after_restore=("clock",),
        ),
        notify=(
            Webhook("http://127.0.0.1:9/hook", on=("failure", "success"), timeout=5.0),
            Webhook("https://example.org/"),
        ),
        source=source,
    )


def test_relative_paths_are_relative_to_the_file_not_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "m.yaml", "images: here\nguests: {a: {qmp: a.sock}}")
    monkeypatch.chdir(tmp_path)
    loaded = config.load(Path("sub/m.yaml"), {})
    assert loaded.images == tmp_path / "sub/here"
    assert loaded.guests["a"].qmp == tmp_path / "sub/a.sock"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    loaded = config.load(write(tmp_path / "m.yaml", "images: ~/images"), {})
    assert loaded.images == Path("/home/me/images")


def test_order_of_files(tmp_path: Path, no_system_file: Path) -> None:
    option = write(tmp_path / "option.yaml", "images: /option")
    variable = write(tmp_path / "variable.yaml", "images: /variable")
    environ = {config.VARIABLE: str(variable)}
    assert config.load(None, {}).source is None
    write(no_system_file, "images: /system")
    assert config.load(None, {}).images == Path("/system")
    assert config.load(None, {config.VARIABLE: ""}).images == Path("/system")
    assert config.load(None, environ).images == Path("/variable")
    assert config.load(option, environ).images == Path("/option")
    assert config.load(option, environ).source == option


def test_a_file_that_was_named_must_exist(tmp_path: Path, no_system_file: Path) -> None:
    write(no_system_file, "images: /system")
    with pytest.raises(errors.ConfigMissing, match="option"):
        config.load(tmp_path / "option", {})
    with pytest.raises(errors.ConfigMissing, match="variable"):
        config.load(None, {config.VARIABLE: str(tmp_path / "variable")})


def test_a_dangling_link_in_place_of_the_system_file_is_an_error(no_system_file: Path) -> None:
    no_system_file.symlink_to("nowhere")
    with pytest.raises(errors.ConfigMissing):
        config.load(None, {})


def test_what_the_file_leaves_out_is_built_in(tmp_path: Path) -> None:
    source = write(tmp_path / "m.yaml", "guests:\nimages:\n")
    assert config.load(source, {}) == structs.replace(config.defaults({}), source=source)


def test_defaults_of_root() -> None:
    built_in = config.defaults({"XDG_DATA_HOME": "/elsewhere"}, root=True)
    assert built_in == config.Config(
        images=Path("/var/lib/mapsave/images"),
        state=Path("/var/lib/mapsave/state"),
        socket=Path("/run/mapsave/mapsave.sock"),
        jobs=Path("/etc/mapsave/jobs.d"),
    )


def test_places_of_the_systems_file_are_the_systems(
    no_system_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For everybody: else the commands of an operator would not find the service."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    no_system_file.write_text("images: /srv/images\n")
    environ = {"HOME": "/home/alice", "XDG_RUNTIME_DIR": "/run/user/1"}
    found = config.load(None, environ)
    assert (found.socket, found.state) == (config.Config().socket, config.Config().state)
    assert found.images == Path("/srv/images")
    assert config.load(no_system_file, environ) == found


def test_defaults_of_an_ordinary_user() -> None:
    environ = {"HOME": "/home/me", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "relative"}
    built_in = config.defaults(environ, root=False)
    assert built_in.images == Path("/home/me/.local/share/mapsave/images")
    assert built_in.state == Path("/home/me/.local/state/mapsave")
    assert built_in.socket == Path("/run/user/7/mapsave/mapsave.sock")
    assert built_in.jobs == Path("/home/me/.config/mapsave/jobs.d")
    without = config.defaults({"HOME": "/home/me"}, root=False)
    assert without.socket == Path("/home/me/.local/state/mapsave/mapsave.sock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagse: /x", "m.yaml:1:1: unknown key 'imagse': did you mean 'images'?"),
        ("images: ''", "m.yaml:1:9: images: must not be empty"),
        ('images: "a\\0b"', "m.yaml:1:9: images: must not contain a NUL"),
        ("images: 5", "m.yaml:1:9: images: must be a path, not 5"),
        ("guests: [web01]", "m.yaml:1:9: guests: must be a mapping, not a list"),
        ("guests:\n  a:\n    qpm: /x", "m.yaml:3:5: unknown key 'qpm': did you mean 'qmp'?"),
        (
            "guests:\n  a: {}",
            "m.yaml:2:6: guests.a: needs exactly one of qmp, libvirt and emulator",
        ),
        (
            "guests:\n  a:\n    qmp: /x\n    emulator: {memory: 1M}",
            "m.yaml:2:3: guests.a: needs exactly one of qmp, libvirt and emulator, "
            "not qmp and emulator",
        ),
        (
            "guests:\n  a: {libvirt: {domain: x}, launch: [x]}",
            "m.yaml:2:6: guests.a: launch applies to qmp guests, not to libvirt ones",
        ),
        (
            "guests:\n  a: {qmp: /x, launch: [x, -incoming, defer]}",
            "m.yaml:2:6: guests.a: launch must not contain -incoming: mapsave adds it",
        ),
        ("guests:\n  a: {qmp: /x, launch: ['']}", "guests.a: launch must begin with a command"),
        ("guests:\n  a: {qmp: /x, launch: []}", "m.yaml:2:24: guests.a.launch: must be a list"),
        ("guests:\n  a: {qmp: /x, launch: [a, true]}", "m.yaml:2:28: guests.a.launch[1]: must be"),
        ("guests:\n  a: {libvirt: {uri: x}}", "2:16: the key 'domain' is missing in guests.a.lib"),
        ("guests:\n  a: {emulator: {memory: much}}", "2:26: guests.a.emulator.memory: not a size"),
        (f"guests:\n  a: {{emulator: {{memory: {'9' * 400}.5K}}}}", "memory: not a size"),
        (
            "guests:\n  a: {emulator: {memory: 1M, version: 12.0}}",
            "guests.a.emulator.version:",
        ),
        ("guests:\n  a: {emulator: {memory: 0}}", "guests.a.emulator.memory: must not be 0"),
        (
            "guests:\n  a: {emulator: {memory: true}}",
            "guests.a.emulator.memory: must be a size, such as",
        ),
        (
            "guests:\n  a: {emulator: {memory: 1.5}}",
            "guests.a.emulator.memory: must be a size, such as",
        ),
        (
            "guests:\n  a: {emulator: {memory: 1M, pattern: zebra}}",
            "guests.a.emulator.pattern: must be 'random', 'sparse', 'fragmented' or 'linux', "
            "not 'zebra'",
        ),
        ("save:\n  then: stop", "m.yaml:2:9: save.then: must be 'quit', 'resume' or 'leave'"),
        ("save:\n  channels: 0", "m.yaml:2:13: save.channels: must be 'auto' or a number"),
        ("save:\n  channels: 256", "m.yaml:2:13: save.channels: must be 'auto' or a number"),
        ("save:\n  channels: true", "m.yaml:2:13: save.channels: must be 'auto' or a number"),
        ("save:\n  direct_io: maybe", "save.direct_io: must be 'auto', 'on' or 'off', not 'maybe'"),
        ("save:\n  live: perhaps", "m.yaml:2:9: save.live: must be true or false"),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(tmp_path, text)


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "-a",
        "",
        ".",
        "..",
        "a\\nb",
        "a\\0b",
        "qmp:x",
        "libvirt:x",
        "libvirt+x",
        " a",
        "a" * 201,
    ],
)
def test_bad_name_of_a_guest(tmp_path: Path, name: str) -> None:
    message = error_of(tmp_path, f'guests:\n  "{name}": {{qmp: /x}}')
    assert message.startswith("m.yaml:2:3: guests.")


@pytest.mark.parametrize("name", ["web01", "a b", "it's", "münchen", "a:b", "qmp", "no", "a" * 200])
def test_good_name_of_a_guest(tmp_path: Path, name: str) -> None:
    loaded = config.load(write(tmp_path / "m.yaml", f'guests:\n  "{name}": {{qmp: /x}}'), {})
    assert loaded.guest(name).name == name


def test_guest_by_address() -> None:
    built_in = config.defaults({})
    assert built_in.guest("qmp:/run/a:b.sock").qmp == Path("/run/a:b.sock")
    assert built_in.guest("libvirt:db").libvirt == config.LibvirtDomain("db", "qemu:///system")
    there = built_in.guest("libvirt+qemu+ssh://host/system?a=1#db:1")
    assert there.libvirt == config.LibvirtDomain("db:1", "qemu+ssh://host/system?a=1")
    assert there.name == "libvirt+qemu+ssh://host/system?a=1#db:1"
    numbered = built_in.guest("libvirt+qemu:///session#vm#11")
    assert numbered.libvirt == config.LibvirtDomain("vm#11", "qemu:///session")


@pytest.mark.parametrize("address", ["libvirt:{}", "libvirt+qemu:///system#{}", "libvirt+{}#x"])
@pytest.mark.parametrize("text", ["\udcff", "\ud800", "a\0b"])
def test_address_that_nobody_can_be_given(address: str, text: str) -> None:
    with pytest.raises(errors.UsageError, match=r"not UTF-8|NUL"):
        config.defaults({}).guest(address.format(text))


def test_path_of_a_socket_is_any_bytes_but_nul() -> None:
    built_in = config.defaults({})
    assert built_in.guest("qmp:/run/\udcff").qmp == Path("/run/\udcff")
    for text in ("\ud800", "a\0b"):
        with pytest.raises(errors.UsageError):
            built_in.guest(f"qmp:/run/{text}")


@pytest.mark.parametrize("address", ["", "web1", "qmp:", "libvirt:", "libvirt+x", "libvirt+#x"])
def test_unknown_guest(address: str) -> None:
    built_in = structs.replace(
        config.defaults({}), guests={"web01": config.Guest("web01", qmp=Path("/x"))}
    )
    with pytest.raises(errors.UnknownGuest) as caught:
        built_in.guest(address)
    if address == "web1":
        assert caught.value.hint == "did you mean 'web01'?"


@pytest.mark.parametrize("word", ["save", "check", "plan", "guard", "save-all", "restore"])
def test_a_socket_without_its_prefix_is_suggested_with_it(site: cli.Site, word: str) -> None:
    path = site.directory / "web.qmp"
    words = ["nothing", "--into", path] if word == "restore" else [path]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        error = site.run(word, *words, "--json", check=2).error()
    assert error["hint"] == f"did you mean 'qmp:{path}'?"


def test_show_is_a_file_that_means_the_same(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path / "manager.yaml", CONFIGURATION), {})
    shown = configuration.text(loaded)
    assert shown.startswith(f"# from '{tmp_path}/manager.yaml'\n")
    again = config.load(write(tmp_path / "again.yaml", shown), {})
    assert structs.replace(again, source=loaded.source) == loaded


def test_show_of_built_in_defaults() -> None:
    built_in = config.defaults({}, root=True)
    shown = configuration.text(built_in)
    assert shown.startswith("# from built-in defaults")
    assert yaml.safe_load(shown)["images"] == "/var/lib/mapsave/images"


def test_schema_describes_every_key() -> None:
    schema = keys.schema(config.Config)
    json.dumps(schema)
    assert set(schema["properties"]) == {
        *("images", "state", "socket", "jobs", "policies", "guests", "save"),
        *("service", "hooks", "notify", "launch_environment", "trust", "restore"),
        *("hosts", "memory", "fleet"),
    }
    for model in (schema, *schema["$defs"].values()):
        assert model["additionalProperties"] is False
        assert all(each.get("description") for each in model["properties"].values()), model


def test_without_a_file_no_yaml_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from mapsave import config;"
        "config.SYSTEM_FILE = pathlib.Path(sys.argv[1]);"
        "config.load(None, {}).guest('qmp:/x');"
        "print(sorted({'yaml', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "none")], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


VALUES = st.sampled_from(
    [
        "1",
        "64M",
        "auto",
        "on",
        "true",
        "x",
        "[]",
        "[a]",
        "{}",
        "~",
        "''",
        "-1",
        "1.5",
        "/x",
        "{a: b}",
    ]
)
KEYS = st.sampled_from(
    [
        *("images", "guests", "save", "qmp", "libvirt", "emulator", "launch", "memory", "uri"),
        *("then", "channels", "direct_io", "live", "policy", "a/b", "web01", "-x"),
    ]
)
LINES = st.builds(
    lambda depth, key, value: f"{'  ' * depth}{key}: {value}",
    st.integers(0, 3),
    KEYS,
    VALUES | st.just(""),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINES, max_size=8).map("\n".join))
def test_random_files_give_a_configuration_or_a_declared_error(tmp_path: Path, text: str) -> None:
    try:
        loaded = config.load(write(tmp_path / "m.yaml", text), {})
    except errors.ConfigError:
        return
    assert loaded.images.is_absolute()
    assert configuration.text(loaded)


def test_as_many_guests_as_a_large_host_has(tmp_path: Path) -> None:
    path = tmp_path / "manager.yaml"
    lines = ["guests:"]
    for number in range(20_000):
        lines += [f"  guest{number}:", f"    qmp: /run/qemu/guest{number}.qmp", "    priority: 5"]
    path.write_text("\n".join(lines))
    begun = time.process_time()
    assert len(config.load(path, {}).guests) == 20_000
    assert time.process_time() - begun < 60


def test_memory_is_of_guests_that_a_command_starts(tmp_path: Path) -> None:
    """What a guest says of it comes before what all have."""
    text = "memory: {shared_file: auto}\nguests: {web01: {qmp: /x, memory: {shared_file: on}}}\n"
    loaded = config.load(write(tmp_path / "manager.yaml", text), {})
    own = loaded.guests["web01"].memory
    assert own is not None
    assert (loaded.memory.shared_file, own.settings()) == ("auto", {"shared_file": "on"})
    text = "guests: {web01: {libvirt: {domain: x}, memory: {shared_file: on}}}\n"
    with pytest.raises(errors.ConfigError, match="memory applies to qmp guests"):
        config.load(write(tmp_path / "other.yaml", text), {})
