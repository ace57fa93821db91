"""The layers: imports go downwards only, no circle of files, nothing longer than a few screens."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import mapsave
import pytest

HOUSE = Path(mapsave.__file__).parent
TESTS = Path(__file__).parent
FILE_LINES = 400
FUNCTION_LINES = 80

# From the top floor down. A room may import from every floor below its own, and from itself; that
# the files of one room, those of the base among them, have an order, test_no_circle_of_files holds.
BASE = "base"  # errors/, and each file that is in no room
FLOORS = (
    ("cli",),
    ("service",),
    ("fleet",),
    ("client",),
    ("evacuation",),
    ("jobs",),
    ("hooks", "history"),
    ("operations",),
    ("proof",),
    ("plan", "migration", "pictures", "archive"),
    ("monitor", "image", "labels"),
    (BASE,),
)
EMULATOR = "emulator"  # beside the floors: uses the image and the base, is used by the cli only


def floor(room: str) -> int | None:
    """Return the number of the floor of ``room``, from the top; None if there is no such room."""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def allowed(room: str, used: str) -> bool:
    """Return whether a file in ``room`` may import from ``used``."""
    if room == used:
        return True
    if room == EMULATOR:
        return used in ("image", BASE)
    if used == EMULATOR:
        return room == "cli"
    here, there = floor(room), floor(used)
    return here is not None and there is not None and there > here


def room_of(file: Path) -> str:
    """Return the room of a file, by its path in the package."""
    if file.name == "__main__.py" and len(file.parts) == 1:
        return "cli"
    return BASE if len(file.parts) == 1 or file.parts[0] == "errors" else file.parts[0]


def sources(house: Path) -> list[Path]:
    """Return the files of the package, by their paths in it."""
    return sorted(path.relative_to(house) for path in house.rglob("*.py"))


def imports(file: Path, house: Path) -> Iterator[tuple[int, Path]]:
    """Yield line and file of every import of our own package, in functions and for types too."""
    package = [house.name, *file.parts[:-1]]
    for node in ast.walk(ast.parse((house / file).read_text(), str(file))):
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
            if target[0] == house.name:
                yield node.lineno if hasattr(node, "lineno") else 0, _file_of(target[1:], house)


def _file_of(names: list[str], house: Path) -> Path:
    """Return the file that ``import`` of these names reads last: the last may be in a module."""
    for parts in (names, names[:-1]):
        for file in (Path(*parts, "__init__.py"), Path(*parts[:-1], f"{(parts or [''])[-1]}.py")):
            if (house / file).is_file():
                return file
    return Path(*names[:1], "__init__.py")  # none that is there: the room is wrong, or new


def violations(house: Path) -> list[str]:
    """Return each import that goes upwards or sideways, as ``file:line: room imports room``."""
    found = []
    for file in sources(house):
        room = room_of(file)
        if floor(room) is None and room != EMULATOR:
            found.append(f"{file}: there is no room {room}")
        found += [
            f"{file}:{line}: {room} imports {room_of(used)}"
            for line, used in imports(file, house)
            if not allowed(room, room_of(used))
        ]
    return found


def circle(house: Path) -> list[str]:
    """Return the files of a circle of imports, the first twice; none if there is no circle."""
    graph = {
        file: {used for _, used in imports(file, house) if used not in (file, Path("__init__.py"))}
        for file in sources(house)
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [str(file) for file in error.args[1]]
    return []


def test_imports_go_downwards_only() -> None:
    assert violations(HOUSE) == []


def test_no_circle_of_files() -> None:
    assert circle(HOUSE) == []


def test_the_check_sees_the_imports_there_are() -> None:
    """An empty list of violations means nothing if the imports are not found."""
    seen = {(str(file), str(used)) for file in sources(HOUSE) for _, used in imports(file, HOUSE)}
    assert {("config.py", "errors/__init__.py"), ("jobs/job.py", "config.py")} <= seen


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
        ("history/a.py", "from mapsave.hooks import runner", "history imports hooks"),
        ("hooks/a.py", "from mapsave.jobs import engine", "hooks imports jobs"),
        ("client/a.py", "from mapsave.service import tls", "client imports service"),
        ("evacuation/a.py", "from mapsave.client import here", "evacuation imports client"),
        ("config.py", "import mapsave.jobs.job", "config.py:1: base imports jobs"),
        ("errors/a.py", "from mapsave.image import store", "base imports image"),
        ("__init__.py", "from mapsave.jobs import job", "__init__.py:1: base imports jobs"),
        ("operations/a.py", "from mapsave.emulator import run", "operations imports emulator"),
        ("emulator/a.py", "from mapsave.monitor import qmp", "emulator imports monitor"),
        ("plan/a.py", "if TYPE_CHECKING:\n    from mapsave import jobs", "a.py:2: plan imports"),
        ("plan/a.py", "importlib.import_module('mapsave.jobs.job')", "plan imports jobs"),
        ("plan/a.py", "__import__('mapsave.jobs')", "plan imports jobs"),
        ("plan/a.py", "from mapsave.elsewhere import a", "plan imports elsewhere"),
        ("attic/a.py", "", "attic/a.py: there is no room attic"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    _plant(tmp_path, {file: code})
    for rooms in FLOORS:
        for room in rooms:
            _plant(tmp_path, {f"{room}/__init__.py": ""} if room != BASE else {"errors.py": ""})
    (only,) = violations(tmp_path / "mapsave")
    assert found in only


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cli/a.py", "from mapsave import emulator, service, jobs, errors"),
        ("cli/a.py", "from . import b\nfrom mapsave.cli.c import d"),
        ("__main__.py", "from mapsave.cli.start import command"),
        ("emulator/a.py", "from mapsave.image import stream_format\nfrom mapsave import units"),
        ("operations/a.py", "from mapsave.plan import x\nfrom mapsave.labels import y"),
        ("config.py", "from mapsave import units, errors"),
        ("monitor/a.py", "import mapsave\nfrom mapsave import __version__\nimport asyncio"),
    ],
)
def test_an_import_that_goes_down_is_allowed(tmp_path: Path, file: str, code: str) -> None:
    rooms = ("emulator", "service", "jobs", "errors", "cli", "image", "plan", "labels")
    _plant(tmp_path, {f"{room}/__init__.py": "" for room in rooms})
    _plant(tmp_path, {"__init__.py": "", "units.py": "", file: code})
    assert violations(tmp_path / "mapsave") == []


@pytest.mark.parametrize(
    "files",
    [
        {"jobs/a.py": "from mapsave.jobs import b", "jobs/b.py": "import mapsave.jobs.a"},
        {"a.py": "from mapsave import b", "b.py": "def f():\n    from mapsave.a import x"},
        {"a.py": "from .b import x", "b.py": "if TYPE_CHECKING:\n    from mapsave import a"},
        {"a.py": "import mapsave.b", "b.py": "from . import c", "c.py": "from mapsave.a import x"},
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    _plant(tmp_path, files | {"d.py": "from mapsave import a"})
    assert set(circle(tmp_path / "mapsave")) == set(files)


def _plant(directory: Path, files: dict[str, str]) -> None:
    """Make a package mapsave of ``files``, their code by their paths in it."""
    for file, code in files.items():
        path = directory / "mapsave" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)


def splats(code: str) -> list[int]:
    """Return the lines with calls that spell out arguments as ``*(a, b)`` or ``*[a, b]``."""
    return [
        argument.lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        for argument in node.args
        if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
    ]


def test_no_call_spells_out_a_splat() -> None:
    """Arguments are named, or a dataclass: ``*(a, b)`` only hides how many there are."""
    found = {path: splats(path.read_text()) for top in (HOUSE, TESTS) for path in top.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_planted_splat_is_found() -> None:
    assert splats("f(*(1, 2))\nf(*words, *(a for a in b))\nf(0,\n  *[1, 2], x=3)") == [1, 4]


def test_no_test_imports_from_another_test() -> None:
    """What several files of tests use is in the kit, or in a module beside them."""
    found = {
        (str(path.relative_to(TESTS)), node.module)
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests")
        for part in (*node.module.split("."), *(alias.name for alias in node.names))
        if part.startswith("test_")
    }
    assert found == set()


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
