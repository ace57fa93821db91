"""mapsave installed as a distribution would, and confined where the mode is that.

A plugin for pytest. In the mode ``apparmor-confined`` the cases run ``/usr/bin/mapsave`` in the
profile that ships, else the same outside of any.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import mapsave
import pytest

from tests.kit import cli, tree

CONFINED = os.environ["VM_MODE"] == "apparmor-confined"
PROFILES = Path("/etc/apparmor.d")
COMMAND = Path("/usr/bin/mapsave")
SECRET = "no-business-of-mapsave"
# mapsave that is killed at a step; see tests/faults/killer.py.
KILLER = [
    *(("aa-exec", "-p", "mapsave", "--") if CONFINED else ()),
    *("python3", "-m", "mapsave_killer"),
]
_SHIPPED = Path(mapsave.__file__).parent / "policies"
# As pip writes it.
_SCRIPT = (
    "#!/usr/bin/python3\nimport sys\nfrom mapsave.cli.start import command\nsys.exit(command())\n"
)
# Where the cases have what an operator has in one place.
_PLACES = """
@{mapsave_images} += /var/lib/mapsave/*/images{,.*}
@{mapsave_state} += /var/lib/mapsave/*/state
@{mapsave_config} += /var/lib/mapsave/*/*.yaml /var/lib/mapsave/*/home
"""


def load(profile: Path) -> None:
    """Load a profile as an operator does. Raises AssertionError with the parser's complaint."""
    _parser("-r", "-K", profile)


def unload(profile: Path) -> None:
    """Remove the profiles of a file from the kernel; processes in them become unconfined."""
    _parser("-R", "-K", profile)


def _parser(*words: str | Path) -> None:
    done = subprocess.run(["apparmor_parser", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session", autouse=True)
def installed() -> Iterator[None]:
    """Install mapsave; load its profile if it is to be confined, which no one unloads."""
    if not Path("/sys/kernel/security/apparmor/profiles").exists():
        yield
        return
    packages = Path(sysconfig.get_path("purelib", "deb_system"))
    shutil.copytree(_SHIPPED.parent, packages / "mapsave", dirs_exist_ok=True)
    shutil.copy(tree.ROOT / "tests/faults/killer.py", packages / "mapsave_killer.py")
    COMMAND.write_text(_SCRIPT)
    COMMAND.chmod(0o755)
    shutil.copytree(
        _SHIPPED / "apparmor" / "abstractions", PROFILES / "abstractions", dirs_exist_ok=True
    )
    (PROFILES / "local").mkdir(exist_ok=True)
    (PROFILES / "libvirt").mkdir(exist_ok=True)
    if CONFINED:
        # It may not keep what it has compiled, and compiling takes long here.
        if not _compiled(packages / "mapsave"):
            subprocess.run(
                ["python3", "-m", "compileall", "-q", "-j2", packages / "mapsave"], check=True
            )
        (PROFILES / "tunables" / "mapsave.d").mkdir()
        (PROFILES / "tunables" / "mapsave.d" / "places").write_text(_PLACES)
        profile = PROFILES / "usr.bin.mapsave"
        shutil.copy(_SHIPPED / "apparmor" / profile.name, profile)
        load(profile)
    usual, cli.COMMAND[:] = cli.COMMAND[:], [str(COMMAND)]
    yield
    cli.COMMAND[:] = usual


def _compiled(package: Path) -> bool:
    """Return whether there is bytecode of this Python, brought along with the source."""
    file = Path(importlib.util.cache_from_source(str(package / "__init__.py")))
    return file.exists() and file.read_bytes().startswith(importlib.util.MAGIC_NUMBER)


@pytest.fixture(autouse=True)
def enough() -> Iterator[None]:
    """Fail where mapsave's own profile has kept it from anything."""
    before = _kept_from_mapsave()
    yield
    kept = {_what(line) for line in _kept_from_mapsave() - before}
    # /run/carried is the test kit's, and on the path where Python looks for modules.
    assert not [each for each in kept if "/run/carried" not in each and SECRET not in each]


def _kept_from_mapsave() -> set[str]:
    if not CONFINED:
        return set()
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return {line for line in said.splitlines() if 'DENIED"' in line and 'profile="mapsave' in line}


def _what(line: str) -> str:
    words = re.findall(r'(?:operation|profile|name|requested_mask|peer|capname|info)="[^"]*"', line)
    return " ".join(words)
