"""Label an image for QEMU and roll everything back: one policy applied on one host.

The security modules are asked and applied one after the other; whatever happens, what was applied
is undone, unless the caller has said that the image is to be left (``keep``) or is done
(``at_rest``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from mapsave import errors
from mapsave.labels import modules
from mapsave.labels.dac import Dac
from mapsave.labels.interface import SecurityModule
from mapsave.labels.label import Access, Label, Problem, Target, name_of, who
from mapsave.labels.policy import BUILT_IN, Policy
from mapsave.labels.system import System

_Done = tuple[SecurityModule, Label]


log = logging.getLogger(__name__)

_HOST = System()

_DENIED = "Permission denied"


class Labelling:
    """A policy on a host. Raises LabelUnavailable if it wants what is not active there."""

    def __init__(self, policy: Policy, system: System = _HOST) -> None:
        self.policy = policy
        self.system = system
        self.modules = _modules(policy, system)

    def check(
        self, directory: str, pid: int | None, access: Access, names: Sequence[str] = ()
    ) -> Label:
        """Return what would be applied to an image in ``directory``; touch nothing.

        ``pid`` is QEMU's, None if it is not running yet: then what depends on it is left open.
        Raises LabelRefused, PolicyViolation, NotPermitted if it would be refused.
        """
        if access == "save":
            self._check_directory(directory)
        parts: list[Label] = []
        for module in self.modules:
            with _speaking(module, directory, pid):
                parts.append(module.check(directory, pid, access, names))
        return _joined(parts)

    @contextlib.contextmanager
    def applied(
        self,
        target: Target,
        on_left: Callable[[list[Problem]], object] | None = None,
    ) -> Iterator[Applied]:
        """Label the open image for QEMU, and undo it at the end.

        For a restore, call it when QEMU runs: its context decides. Raises LabelRefused,
        PolicyViolation, NotPermitted, with the image as it was. What goes wrong when undoing is
        logged, never raised; ``on_left`` is called with it.
        """
        if target.access == "save":
            self._check_directory(os.path.dirname(name_of(target.fd, target.path)))

        def undo(module: SecurityModule, label: Label) -> None:
            if (problems := attempt(module, "undo", target, label)) and on_left is not None:
                on_left(problems)

        kept = os.dup(target.fd)
        try:
            target = dataclasses.replace(target, fd=kept)
            with contextlib.ExitStack() as undoing:
                done: list[_Done] = []
                for module in self.modules:
                    with _speaking(module, target.path, target.pid):
                        label = module.apply(target)
                    done.append((module, label))
                    undoing.callback(undo, module, label)
                yield Applied(_joined([label for _, label in done]), target, done, undoing)
        finally:
            os.close(kept)

    def give(self, fd: int, path: str, expected: Label) -> None:
        """Label an open file that is QEMU's alone from now on, in the contexts of ``expected``.

        QEMU is to open it as it starts, for reading and writing. Nothing is to be taken back: the
        file ends with QEMU. Raises LabelRefused, PolicyViolation, NotPermitted.
        """
        target = Target(fd, path, (), None, "save", expected)
        for module in self.modules:
            if module.marks_files:
                with _speaking(module, path, None):
                    module.apply(target)

    def intended(self, target: Target) -> Label | None:
        """Return what :meth:`applied` would change that stays if mapsave dies; None: nothing.

        Those are rules elsewhere, and for a restore the image's label: a partial image goes with
        its own. Raises LabelRefused, PolicyViolation.
        """
        parts: list[Label] = []
        for module in self.modules:
            with _speaking(module, target.path, target.pid):
                part = module.intended(target)
            on_image = target.access == "restore" and part.value != part.previous
            if part.detail.get("rules") or on_image:
                parts.append(part)
        return _joined(parts) if parts else None

    @contextlib.contextmanager
    def creating(self, pid: int | None) -> Iterator[None]:
        """Let files of this thread be born with their label. Raises NotPermitted and its kin."""
        with contextlib.ExitStack() as stack:
            for module in self.modules:
                stack.enter_context(module.creating(pid))
            yield

    def _check_directory(self, directory: str) -> None:
        """Raise PolicyViolation unless the policy lets images go to ``directory``."""
        if not self.policy.directories:
            return
        real = os.path.realpath(directory)
        for allowed in map(os.path.realpath, self.policy.directories):
            if os.path.commonpath([real, allowed]) == allowed:
                return
        leads = "" if real == os.path.abspath(directory) else f" (which is {real})"
        raise errors.PolicyViolation(
            f"policy {self.policy.name} forbids images in {directory}{leads}",
            hint=f"it allows {', '.join(self.policy.directories)} and everything below",
            file=directory,
            wanted=list(self.policy.directories),
        )


class Applied:
    """What was applied, and the choice of what becomes of it."""

    def __init__(
        self, label: Label, target: Target, done: list[_Done], undoing: contextlib.ExitStack
    ) -> None:
        self.label = label
        self._target = target
        self._done = done
        self._undoing = undoing

    def keep(self) -> None:
        """Leave everything as it is, for QEMU is still at it; see ``recovery.settle``."""
        self._undoing.pop_all()

    def at_rest(self) -> list[Problem]:
        """Give the image label, owner and mode for rest, and take AppArmor's rules out.

        Call it when QEMU has no descriptor of it any more. Returns, and logs, what went wrong.
        """
        self._undoing.pop_all()
        return [
            problem
            for module, label in reversed(self._done)
            for problem in attempt(module, "rest", self._target, label)
        ]


def describe_refusal(
    error_desc: str, fd: int, path: str, pid: int | None, system: System = _HOST
) -> errors.LabelRefused:
    """Return the error for a file that QEMU was not given or could not use.

    "No file descriptor supplied via SCM_RIGHTS" at add-fd is how a refused descriptor looks;
    "Permission denied" at migrate is a refused truncate or write.
    """
    target = _target(fd, path, pid)
    reasons: list[str] = []
    for module in modules.active(BUILT_IN["auto"], system):
        try:
            reasons.append(module.explain(target))
        except (OSError, errors.MapsaveError) as error:
            reasons.append(f"{module.name}: {error}")
    if not reasons:
        reasons = [
            "no security module is active on this host; check QEMU's sandbox and limits, and "
            "whether a program such as socat is between mapsave and QEMU"
        ]
    reasons.append(Dac(BUILT_IN["auto"], system).explain(target))
    return errors.LabelRefused(
        f"{who(pid)} could not use {path}: {'; '.join(reasons)} (QEMU's message: {error_desc})",
        hint="choose a policy that labels images for this QEMU, or see docs/labels.md",
        file=path,
        qemu=error_desc,
        process=system_process_context(pid, system),
        findings=reasons,
    )


def refusal(
    error_desc: str, fd: int, path: str, pid: int | None, system: System = _HOST
) -> errors.LabelRefused | None:
    """Return the error if a refused file is why QEMU failed, else None.

    QEMU may say "Input/output error" or "Invalid argument" where a label changed while it was
    saving or loading, so the security modules are asked as well.
    """
    target = _target(fd, path, pid)
    if _DENIED in error_desc or any(
        _refuses(module, target) for module in modules.active(BUILT_IN["auto"], system)
    ):
        return describe_refusal(error_desc, fd, path, pid, system)
    return None


def raise_if_refused(error_desc: str, fd: int, path: str, pid: int | None) -> None:
    """Raise LabelRefused if a refused file is why QEMU failed."""
    if (found := refusal(error_desc, fd, path, pid)) is not None:
        raise found from None


def _target(fd: int, path: str, pid: int | None) -> Target:
    """Return the image as QEMU was to use it: to read where ``fd`` is for reading only."""
    reading = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    return Target(fd, path, (), pid, "restore" if reading else "save")


def _refuses(module: SecurityModule, target: Target) -> bool:
    try:
        return module.refuses(target)
    except (OSError, errors.MapsaveError) as error:
        log.debug("cannot ask %s whether it refuses %s: %s", module.name, target.path, error)
        return False


def system_process_context(pid: int | None, system: System = _HOST) -> str | None:
    """Return the context of the process in the active security module; None without either."""
    for module in modules.active(BUILT_IN["auto"], system):
        with contextlib.suppress(OSError, errors.MapsaveError):
            return module.process(pid)
    return None


def _modules(policy: Policy, system: System) -> list[SecurityModule]:
    chosen: list[SecurityModule] = []
    if policy.module not in ("dac", "none"):
        active = modules.active(policy, system)
        chosen.extend(module for module in active if policy.module in ("auto", module.name))
        if not chosen and policy.module != "auto":
            names = ", ".join(module.name for module in active) or "none"
            raise errors.LabelUnavailable(
                f"policy {policy.name} needs {policy.module}, which is not active on this host",
                hint=f"active security modules: {names}; use the policy auto, or boot with "
                f"security={policy.module}",
                wanted=policy.module,
            )
    dac = Dac(policy, system)
    return [*chosen, dac] if dac.is_needed else chosen


@contextlib.contextmanager
def _speaking(module: SecurityModule, path: str, pid: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.LabelRefused(
            f"{module.name}: cannot label {path} for {who(pid)}: {error}",
            hint="see docs/labels.md for what mapsave needs to label files",
            file=path,
        ) from error


def attempt(
    module: SecurityModule, step: Literal["undo", "rest"], target: Target, label: Label
) -> list[Problem]:
    """Do one step that must not stop the others; return and log what went wrong.

    Only a label that was to be restored, or rules, are worth another attempt.
    """
    try:
        (module.undo if step == "undo" else module.rest)(target, label)
    except Exception as error:  # whatever it is, it must not hide why we are undoing
        what = "restore the label of" if step == "undo" else "set the final label of"
        hint = error.hint if isinstance(error, errors.MapsaveError) else None
        recoverable = step == "undo" or bool(label.detail.get("rules"))
        hint = hint or ("run 'mapsave recover'" if recoverable else "set it by hand")
        problem = Problem(
            f"{module.name}: cannot {what} {target.path}: {error} ({hint})", recoverable
        )
        log.error("%s", problem.text)
        return [problem]
    return []


def _joined(parts: Sequence[Label]) -> Label:
    if not parts:
        return Label("none")
    return dataclasses.replace(parts[0], others=tuple(parts[1:]))
