"""The house of the design: imports go downwards only, and no room is larger than a few screens."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import mapsave
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUSE = Path(mapsave.__file__).parent
FILE_LINES = 400
FUNCTION_LINES = 60

# From the top floor down. A room may import from every floor below its own.
FLOORS = (
    ("cli", "service", "fleet"),
    ("jobs",),
    ("operations",),
    ("plan", "migration"),
    ("monitor", "image", "labels"),
    (
        *("config", "config_file", "config_models", "plain"),
        *("yaml_file", "yaml_errors", "domain_xml", "error_table", "errors", "units"),
        *("domain_resources", "file_lock", "open_files", "service_settings"),
        "strict_json",
        "unix_socket",
    ),
)
OPEN_FLOORS = (FLOORS[0], FLOORS[-1])  # here rooms may import one another
EMULATOR = "emulator"  # beside the floors: uses the image and the base, is used by the cli only


def floor(room: str) -> int | None:
    """Return the number of the floor of ``room``, from the top; None if the house has no such."""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def allowed(room: str, used: str) -> bool:
    """Return whether a file in ``room`` may import ``used``."""
    if room == used:
        return True
    if room == EMULATOR:
        return used == "image" or used in FLOORS[-1]
    if used == EMULATOR:
        return room == "cli"
    here, there = floor(room), floor(used)
    if here is None or there is None:
        return False
    return there > here or (there == here and FLOORS[here] in OPEN_FLOORS)


def imports(path: Path, house: Path) -> Iterator[tuple[int, str]]:
    """Yield line and room of every import of our own package in a file, wherever it stands."""
    package = list(path.relative_to(house.parent).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = base + (node.module.split(".") if node.module else [])
            targets = [[*source, alias.name] for alias in node.names]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            words = [each.value for each in node.args if isinstance(each, ast.Constant)]
            targets = [word.split(".") for word in words if isinstance(word, str)]
        for target in targets:
            if target[0] == house.name and len(target) > 1:
                yield node.lineno if hasattr(node, "lineno") else 0, target[1]


def violations(house: Path) -> list[str]:
    """Return each import that goes upwards or sideways, as ``file:line: room imports room``."""
    found = []
    for path in sorted(house.rglob("*.py")):
        inside = path.relative_to(house)
        room = inside.with_suffix("").parts[0]
        if room == "__init__":
            room = "errors"  # the package itself stands at the base
        if floor(room) is None and room != EMULATOR:
            found.append(f"{inside}: the house has no room {room}")
        found += [
            f"{inside}:{line}: {room} imports {used}"
            for line, used in imports(path, house)
            if not used.startswith("__") and not allowed(room, used)
        ]
    return found


def test_imports_go_downwards_only() -> None:
    assert violations(HOUSE) == []


def test_the_check_sees_the_imports_there_are() -> None:
    """An empty list of violations means nothing if the imports are not found."""
    seen = {(path.name, room) for path in HOUSE.rglob("*.py") for _, room in imports(path, HOUSE)}
    assert {("config.py", "errors"), ("config.py", "config_models"), ("job.py", "config")} <= seen


@pytest.mark.parametrize(
    ("file", "code", "found"),
    [
        ("image/a.py", "from mapsave import monitor", "image/a.py:1: image imports monitor"),
        ("image/a.py", "import mapsave.labels.policy as p", "image imports labels"),
        ("labels/a.py", "from mapsave.image import store", "labels imports image"),
        ("plan/a.py", "from mapsave.migration import outgoing", "plan imports migration"),
        ("migration/a.py", "from ..plan import plan", "migration imports plan"),
        ("migration/a.py", "from .. import plan", "migration imports plan"),
        ("monitor/deep/a.py", "from ...operations import save", "monitor imports operations"),
        ("jobs/a.py", "def f():\n    from mapsave.cli import main", "a.py:2: jobs imports cli"),
        ("config.py", "import mapsave.jobs.job", "config.py:1: config imports jobs"),
        ("errors.py", "from mapsave.image import store", "errors imports image"),
        ("__init__.py", "from mapsave.jobs import job", "__init__.py:1: errors imports jobs"),
        ("operations/a.py", "from mapsave.emulator import run", "operations imports emulator"),
        ("emulator/a.py", "from mapsave.monitor import qmp", "emulator imports monitor"),
        ("plan/a.py", "if TYPE_CHECKING:\n    from mapsave import jobs", "a.py:2: plan imports"),
        ("plan/a.py", "importlib.import_module('mapsave.jobs.job')", "plan imports jobs"),
        ("plan/a.py", "__import__('mapsave.jobs')", "plan imports jobs"),
        ("plan/a.py", "from mapsave import elsewhere", "plan imports elsewhere"),
        ("attic/a.py", "", "attic/a.py: the house has no room attic"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    path = tmp_path / "mapsave" / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    (only,) = violations(tmp_path / "mapsave")
    assert found in only


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cli/a.py", "from mapsave import emulator, service, jobs, errors"),
        ("cli/a.py", "from . import b\nfrom mapsave.cli.c import d"),
        ("emulator/a.py", "from mapsave.image import stream_format\nfrom mapsave import units"),
        ("operations/a.py", "from mapsave.plan import x\nfrom mapsave.labels import y"),
        ("config.py", "from mapsave import config_models, errors"),
        ("monitor/a.py", "import mapsave\nfrom mapsave import __version__\nimport asyncio"),
    ],
)
def test_an_import_that_goes_down_is_allowed(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / "mapsave" / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert violations(tmp_path / "mapsave") == []


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in HOUSE.rglob("*.py")}
    assert lengths
    assert {path: length for path, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    functions = [
        (f"{path.relative_to(HOUSE)}:{node.lineno} {node.name}", node)
        for path in HOUSE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert functions
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
