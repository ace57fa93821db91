"""What a mapsave that died has left labelled: set to its final value or restored, from its journal
alone.

No policy is read for it: its file may be gone, or say something else by now.
"""

from typing import Literal

from mapsave.labels import modules
from mapsave.labels.interface import SecurityModule
from mapsave.labels.label import Label, Problem, Target
from mapsave.labels.labelling import attempt
from mapsave.labels.policy import BUILT_IN
from mapsave.labels.system import System

_HOST = System()


def settle(fd: int, path: str, label: Label, system: System = _HOST) -> list[Problem]:
    """Set a saved image's label, owner and mode for rest, as journalled; return what went wrong."""
    return _on_image("rest", Target(fd, path, (), None, "save"), label, system)


def put_back(fd: int, path: str, label: Label, system: System = _HOST) -> list[Problem]:
    """Put the label back that an image had before its restore, unless it was changed since.

    ``label`` was journalled before it was applied. Returns what went wrong.
    """
    return _on_image("undo", Target(fd, path, (), None, "restore"), label, system)


def take_out(label: Label, path: str, system: System = _HOST) -> list[Problem]:
    """Take out AppArmor's rules, as journalled; twice does no harm. Returns what went wrong."""
    with_rules = [part for part in label.parts() if part.detail.get("rules")]
    if not with_rules:
        return []
    from mapsave.labels.apparmor import Apparmor

    module = Apparmor(BUILT_IN["auto"], system)
    target = Target(-1, path, (), None, "save")
    return [problem for part in with_rules for problem in attempt(module, "undo", target, part)]


def _on_image(
    step: Literal["undo", "rest"], target: Target, label: Label, system: System
) -> list[Problem]:
    problems = []
    for part in label.parts():
        module = modules.named(part.module, system)
        if module is None or part.module == "apparmor":
            continue  # AppArmor labels no image: its rules are `take_out`'s
        if part.value is not None and not modules.is_active(part.module, system):
            # To a kernel without the module the label is just bytes: see ``modules``.
            warning = (
                f"{part.module} is no longer active: {target.path} keeps the label {part.value} "
                "(set it by hand once the module is active)"
            )
            problems.append(Problem(warning, recoverable=False))
        elif step == "rest" or _holds(module, target, part):
            problems += attempt(module, step, target, part)
    return problems


def _holds(module: SecurityModule, target: Target, label: Label) -> bool:
    try:
        return module.holds(target, label)
    except OSError:
        return True  # the attempt will say why
