"""The test command itself: stages, what it left out, and where Debian's backports come from."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import backports
from tests.kit import linux_guest, need, processes, tree, wait
from tests.vm import image, machine


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAPSAVE_")}
    kept.pop("CI", None)
    return subprocess.run(
        command, env=kept | environ, capture_output=True, text=True, timeout=wait.LONG, check=False
    )


def test_unknown_stage_is_a_usage_error_that_lists_the_stages() -> None:
    for stage in ("linit", "lint unit", ""):
        done = run("bash", tree.ROOT / "tests/run.sh", "lint", stage)
        assert done.returncode == 2
        assert f"unknown stage: {stage}" in done.stderr
        stages = "lint unit emulator qemu libvirt faults service fleet outside mac"
        assert f"stages: {stages}" in done.stderr


@pytest.mark.parametrize("script", ["tests/run.sh", "tests/install.sh", ".ci/run"])
def test_script_parses(script: str) -> None:
    assert run("bash", "-n", tree.ROOT / script).stderr == ""


def test_build_of_the_disk_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """What ``run.sh`` does when it ends before its last stages: SIGTERM, and wait."""
    if reason := image.unavailable():
        pytest.skip(reason)
    kernel, _ = linux_guest.files()
    for file in (kernel, kernel.with_name("busybox")):
        (tmp_path / file.name).symlink_to(file)
    command = [sys.executable, "-m", "tests.vm.build"]
    before = set(Path("/tmp").glob("mmdebstrap.*"))
    with processes.running(
        command, env={"MAPSAVE_TEST_CACHE": str(tmp_path)}, cwd=tree.ROOT, stderr=subprocess.PIPE
    ) as builder:
        wait.until(
            lambda: any(tmp_path.glob("vm-building-*/root/var/lib/dpkg")),
            what="a tree that grows",
        )
        builder.send_signal(signal.SIGTERM)
        _, said = builder.communicate(timeout=wait.LONG)
        assert builder.returncode == 128 + signal.SIGTERM, said
    assert list(tmp_path.glob("vm-*")) == []
    assert set(Path("/tmp").glob("mmdebstrap.*")) <= before
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert processes.strays() == {}


def test_boots_that_are_done_are_not_repeated(tmp_path: Path) -> None:
    """A serial line that no boot of this case leaves: what is read is what was left before."""
    case = machine.cases("none")[0]
    found = {"mode": "none", "case": case, "outcome": "failed", "words": "read", "seconds": 1.0}
    (tmp_path / "none").mkdir()
    (tmp_path / "none/serial").write_text(f"[ 1.0] {machine.RESULT}{json.dumps(found)}\n")
    only = tree.ROOT / f"tests/mac/test_modes.py::test_case[none-{case}]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", only]
    done = run(*command, MAPSAVE_VM_BOOTS=str(tmp_path), PYTHONPATH=tree.PYTHONPATH)
    assert f"{case} failed inside:" in done.stdout, done.stdout


TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="no such thing here")
def test_left_out(): pass

@pytest.mark.xfail
def test_expected_to_fail(): assert False
"""


def run_pytest(directory: Path, tests: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_some.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.no_skips", "-p", "no:asyncio"]
    options = ("-p", "no:cacheprovider", "--rootdir", directory, directory)
    return run(*command, *options, PYTHONPATH=str(tree.ROOT), **environ)


def test_what_was_left_out_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run_pytest(tmp_path, TESTS, MAPSAVE_SKIPPED=str(log))
    assert done.returncode == 0
    assert log.read_text() == "test_some.py::test_left_out: no such thing here\n"


def test_with_no_skips_a_skip_fails_the_run(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, TESTS, MAPSAVE_NO_SKIPS="1")
    assert done.returncode == 1
    assert "1 left out, but nothing may be" in done.stdout
    whole = 'import pytest\npytest.skip("whole file", allow_module_level=True)\n'
    assert run_pytest(tmp_path, whole, MAPSAVE_NO_SKIPS="1").returncode != 0
    clean = TESTS.replace('@pytest.mark.skip(reason="no such thing here")', "")
    assert run_pytest(tmp_path, clean, MAPSAVE_NO_SKIPS="1").returncode == 0


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A directory for PATH with what install.sh needs and neither apt nor QEMU nor libvirt."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("bash", "dirname", "id", "sed", "sort", "head"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory


def test_without_apt_and_qemu_it_says_what_is_left_out(bare_machine: Path) -> None:
    script = tree.ROOT / "tests/install.sh"
    done = run("bash", script, PATH=str(bare_machine))
    assert done.returncode == 0
    assert "left out: a real QEMU >= 9.1 (here: none)\n" in done.stdout
    assert "left out: qemu-utils is not installed\n" in done.stdout
    assert "left out: libvirt >= 11.2 (here: " in done.stdout
    assert "left out: libvirt-python, which cannot be compiled here: " in done.stdout
    strict = run("bash", script, PATH=str(bare_machine), CI="true")
    assert strict.returncode == 1
    assert "nothing may be left out" in strict.stderr


@pytest.mark.parametrize(
    ("version", "good"), [("7.2.22", False), ("9.0.4", False), ("9.1.0", True), ("10.0.2", True)]
)
def test_qemu_that_is_too_old_is_left_out(bare_machine: Path, version: str, good: bool) -> None:
    qemu = bare_machine / "qemu-system-x86_64"
    qemu.write_text(
        f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian 1:{version}+dfsg)'\n"
    )
    qemu.chmod(0o755)
    done = run("bash", tree.ROOT / "tests/install.sh", PATH=str(bare_machine))
    assert (f"(here: {version})" in done.stdout) is not good


@pytest.mark.parametrize(
    ("version", "good"), [("9.0.0", False), ("11.1.0", False), ("11.2.0", True), ("12.8.0", True)]
)
def test_libvirt_that_is_too_old_is_left_out(bare_machine: Path, version: str, good: bool) -> None:
    for name, words in (("libvirtd", "libvirtd (libvirt) "), ("virsh", ""), ("virt-qemu-run", "")):
        command = bare_machine / name
        command.write_text(f"#!/bin/sh\necho '{words}{version}'\n")
        command.chmod(0o755)
    done = run("bash", tree.ROOT / "tests/install.sh", PATH=str(bare_machine))
    assert (f"left out: libvirt >= 11.2 (here: {version})" in done.stdout) is not good
    (bare_machine / "virsh").unlink()
    done = run("bash", tree.ROOT / "tests/install.sh", PATH=str(bare_machine))
    assert "left out: libvirt >= 11.2" in done.stdout


# One that knows all packages but one, and is sent a signal, or writes down what it was to install.
APT_GET = """\
#!/bin/sh
here=${0%/*}
case " $* " in
*" install "*)
    [ ! -e "$here/signal" ] || { read -r name <"$here/signal"; kill -"$name" $PPID; }
    [ -x /usr/sbin/policy-rc.d ] || exit 99
    case " $* " in *" rpmlint "*) exit 100 ;; esac
    for word; do echo "$word"; done >>"$here/installed"
    ;;
esac
"""


@pytest.fixture
def bare_debian(bare_machine: Path) -> Path:
    """The directory for PATH on a machine with such an apt, whose /usr/sbin is ``sbin`` in it."""
    need.skip_if(need.root())
    for name in ("grep", "rm", "chmod"):
        (bare_machine / name).symlink_to(shutil.which(name) or name)
    (bare_machine / "sbin").mkdir()
    for name, script in (
        ("apt-get", APT_GET),
        ("apt-cache", "#!/bin/sh\necho '  Candidate: 99.0'\n"),
    ):
        (bare_machine / name).write_text(script)
        (bare_machine / name).chmod(0o755)
    return bare_machine


def install(bare_debian: Path) -> subprocess.CompletedProcess[str]:
    """Run install.sh there, heeding signals even where this process ignores them."""
    tools = {name: shutil.which(name) for name in ("unshare", "mount", "env")}
    script = f'{tools["mount"]} --bind "$PATH/sbin" /usr/sbin; '
    script += f'exec {tools["env"]} --default-signal bash "$0"'
    command = [str(tools["unshare"]), "--mount", "/bin/sh", "-ec", script]
    return run(*command, tree.ROOT / "tests/install.sh", PATH=str(bare_debian))


def test_a_package_that_is_not_to_be_had_keeps_no_other_away(bare_debian: Path) -> None:
    done = install(bare_debian)
    assert done.returncode == 0, done.stderr
    installed = (bare_debian / "installed").read_text().split()
    assert {"tmux", "lintian", "qemu-system-x86", "libvirt-daemon"} <= set(installed), done.stderr
    assert "left out: rpmlint is not installed\n" in done.stdout
    assert list((bare_debian / "sbin").iterdir()) == []


@pytest.mark.parametrize("signal_name", ["INT", "TERM", "HUP"])
def test_an_installation_that_is_ended_leaves_no_policy(
    bare_debian: Path, signal_name: str
) -> None:
    (bare_debian / "signal").write_text(f"{signal_name}\n")
    done = install(bare_debian)
    assert done.returncode == 128 + signal.Signals[f"SIG{signal_name}"], done.stderr
    assert list((bare_debian / "sbin").iterdir()) == []


def test_a_policy_of_an_administrator_stays(bare_debian: Path) -> None:
    policy = bare_debian / "sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101 # here\n")
    policy.chmod(0o755)
    assert install(bare_debian).returncode == 0
    assert policy.read_text().endswith("# here\n")


SECURITY = """\
Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
"""
MAIN = """\
# the archive
Types: deb deb-src
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""
OTHER = """\
Types: deb
URIs: http://aaa.example/tool
Suites: bookworm
Components: main
"""


def derive(directory: Path, **files: str) -> str | None:
    (directory / "sources.list.d").mkdir()
    for name, text in files.items():
        path = directory / "sources.list" if name == "main" else None
        (path or directory / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return backports.derive(backports.read(directory), "bookworm")


def test_backports_of_deb822_sources(tmp_path: Path) -> None:
    assert derive(tmp_path, aaa_sources=OTHER, debian_sources=f"{MAIN}\n{SECURITY}") == (
        "Types: deb\n"
        "URIs: http://archive.example/debian\n"
        "Suites: bookworm-backports\n"
        "Components: main\n"
        "Signed-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n"
        " .\n"
        " mQINBF\n"
        " -----END PGP PUBLIC KEY BLOCK-----\n"
    )


def test_backports_of_one_line_sources(tmp_path: Path) -> None:
    lines = (
        "# deb http://old.example/debian bookworm main\n"
        "deb cdrom:[Debian]/ bookworm main\n"
        "deb-src http://archive.example/debian bookworm main\n"
        "deb [arch=amd64,arm64 signed-by=/usr/share/k.gpg] http://archive.example/debian bookworm"
        " main contrib # comment\n"
        "deb http://archive.example/debian/ bookworm-updates main\n"
    )
    assert derive(tmp_path, aaa_list="deb http://aaa.example/x bookworm main\n", main=lines) == (
        "Types: deb\n"
        "URIs: http://archive.example/debian\n"
        "Suites: bookworm-backports\n"
        "Components: main\n"
        "Signed-By: /usr/share/k.gpg\n"
        "Architectures: amd64 arm64\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECURITY,
        OTHER.replace("main", "stable"),
        OTHER + "Enabled: no\n",
        OTHER.replace("bookworm", "trixie"),
        OTHER.replace("deb\n", "deb-src\n", 1),
    ],
)
def test_no_source_of_the_main_archive(tmp_path: Path, text: str) -> None:
    assert derive(tmp_path, some_sources=text) is None
