"""What every security module can do."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from mapsave import errors
from mapsave.labels.label import Access, Label, Target
from mapsave.labels.policy import Policy
from mapsave.labels.system import System


class SecurityModule(Protocol):
    """One security module of the kernel, or the file permissions.

    All of them raise the NotPermitted family, with the file, its label, QEMU's context and what
    the policy wanted in the message.
    """

    name: str
    policy: Policy
    system: System
    marks_files: bool = False  # whether the label is on the file, named or not

    def __init__(self, policy: Policy, system: System) -> None:
        self.policy = policy
        self.system = system

    def process(self, pid: int | None) -> str | None:
        """Return the context of ``pid``; None without one. Raises Unreachable."""
        if pid is None:
            return None
        if not self.system.exists(f"/proc/{pid}"):
            raise gone(pid)
        return self.read_context(pid)

    def context(self, target: Target) -> str | None:
        """Return the context of an image's QEMU, or the one that is expected. As ``process``."""
        if target.expected is None:
            return self.process(target.pid)
        parts = target.expected.parts()
        return next((part.process for part in parts if part.module == self.name), None)

    def read_context(self, pid: int | str) -> str | None:
        """Return what the module says of a process; None where it says nothing."""
        # The first is there for this module alone; old kernels have only the second.
        for file in (f"/proc/{pid}/attr/{self.name}/current", f"/proc/{pid}/attr/current"):
            if current := self.system.read_or_none(file):
                return current
        return None

    def creating(self, pid: int | None) -> contextlib.AbstractContextManager[None]:
        """Let files that this thread creates be born with their label, if the module can."""
        return contextlib.nullcontext()

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        """Return what :meth:`apply` would do to an image in ``directory`` of these ``names``."""

    def intended(self, target: Target) -> Label:
        """Return what :meth:`apply` would return, and change nothing. Raises as it does."""

    def apply(self, target: Target) -> Label:
        """Label the image, read the label back and ask whether it will do.

        When it raises, the image is as it was.
        """

    def holds(self, target: Target, label: Label) -> bool:
        """Return whether the image has ``label`` still: no one has changed it since."""

    def undo(self, target: Target, label: Label) -> None:
        """Put back what was there before ``label`` was applied. Raises OSError, NotPermitted."""

    def rest(self, target: Target, label: Label) -> None:
        """Give the image the label for rest, as ``label`` says. Raises OSError, NotPermitted."""

    def refuses(self, target: Target) -> bool:
        """Return whether the module keeps the file from QEMU now; False where it can't be asked."""

    def explain(self, target: Target) -> str:
        """Return one sentence about the file, QEMU and whether the module lets them meet."""


def gone(pid: int) -> errors.Unreachable:
    """Return the error for a QEMU that is not there any more."""
    return errors.Unreachable(
        f"there is no process {pid}: QEMU exited before its image could be labelled", pid=pid
    )
