"""What is published: a complete sdist, and a wheel that is whole whichever way it is installed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.kit import tree

_NOT_PUBLISHED = (".git", ".venv", "build", "dist", "__pycache__", "*.egg-info", ".*_cache")
_SYSTEM_PYTHON = str(getattr(sys, "_base_executable", sys.executable))  # not one of an environment
_LIBRARIES = sysconfig.get_path("purelib")


def run(*command: str | Path, **environ: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if "PYTHON" not in key}
    environment |= {key: str(value) for key, value in environ.items()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(directory: Path) -> set[str]:
    found = directory.rglob("*")
    return {str(path.relative_to(directory)) for path in found if path.is_file()}


def sources() -> set[str]:
    """Return the files of the project; without a repository, those that the sdist names itself."""
    if (tree.ROOT / ".git").exists():
        return set(run("git", "-C", tree.ROOT, "ls-files", "-z").split("\0")) - {""}
    return set((tree.SOURCES / "mapsave.egg-info/SOURCES.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the sdist and of the wheel that was built from it."""
    top = tmp_path_factory.mktemp("published")
    copy = top / "copy"  # building writes beside the sources
    shutil.copytree(tree.ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_PUBLISHED))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", top / "dist", copy)
    return top / "dist"


def test_the_sdist_has_every_file_of_the_project(published: Path) -> None:
    (sdist,) = published.glob("mapsave-*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    # Links here, directories there.
    links = {"manager/mapsave/policies", "manager/mapsave/systemd"}
    assert sources() - held <= links
    assert not [name for name in held if "__pycache__" in name or ".git/" in name]


def test_the_wheel_says_what_it_is(published: Path) -> None:
    (wheel,) = published.glob("mapsave-*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = HeaderParser().parsestr(archive.read(metadata).decode())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mapsave"}
    assert said["License-Expression"] == "Apache-2.0"
    assert said.get_all("License-File") == ["LICENSE"]
    assert said["Requires-Python"] == ">=3.11"
    assert "mapsave/py.typed" in names
    page = {f"mapsave/cockpit/{name}" for name in files(tree.SOURCES / "mapsave/cockpit")}
    assert len(page) > 3
    assert page <= set(names)
    scripts = {f"mapsave/fleet/{path.name}" for path in tree.SOURCES.glob("mapsave/fleet/*.sql")}
    assert len(scripts) == 3
    assert scripts <= set(names)


def test_each_way_to_install_brings_every_policy(published: Path, tmp_path: Path) -> None:
    (wheel,) = published.glob("mapsave-*.whl")
    install = ("install", "--no-deps", "--no-index", "--no-warn-script-location", wheel)
    system = (sys.executable, "-m", "pip", "--python", _SYSTEM_PYTHON, *install)
    environment = tmp_path / "venv"
    run(_SYSTEM_PYTHON, "-m", "venv", "--without-pip", environment)
    run(sys.executable, "-m", "pip", "--python", environment, *install)
    own = {"PYTHONUSERBASE": tmp_path / "user", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    run(*system, "--user", **own)
    for prefix, layout in (("/usr/local", "default"), ("/usr", "deb")):
        root = tmp_path / layout
        run(*system, f"--root={root}", f"--prefix={prefix}", DEB_PYTHON_INSTALL_LAYOUT=layout)
    run(sys.executable, "-m", "pip", *install, f"--target={tmp_path / 'target'}")

    expected = files(tree.ROOT / "policies")
    names = {Path(name).stem for name in expected if name.endswith(".yaml")}
    assert {"selinux/mapsave.cil", "apparmor/usr.bin.mapsave"} <= expected
    units = files(tree.ROOT / "examples/systemd")
    for way in ("venv", "user", "default", "deb", "target"):
        (script,) = (tmp_path / way).rglob("bin/mapsave")
        (package,) = (path.parent for path in (tmp_path / way).rglob("mapsave/__main__.py"))
        found = {"PYTHONPATH": f"{package.parent}{os.pathsep}{_LIBRARIES}"}
        told = json.loads(run(script, "config", "policies", "--json", **found))
        assert told["directory"] == str(package / "policies"), way
        assert files(Path(told["directory"])) == expected, way
        assert set(told["policies"]) >= names, way
        assert files(package / "systemd") == units, way


def test_as_a_module_it_has_the_name_of_the_command() -> None:
    shown = run(sys.executable, "-m", "mapsave", "--help", PYTHONPATH=tree.PYTHONPATH)
    assert shown.startswith("Usage: mapsave [OPTIONS] COMMAND")
