"""What every security module can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from mapsave.labels.label import Access, Label, Target


class SecurityModule(Protocol):
    """One security module of the kernel, or the file permissions.

    All of them raise the NotPermitted family, with the file, its label, QEMU's context and what
    the policy wanted in the message.
    """

    name: str

    def process(self, pid: int | None) -> str | None:
        """Return the context of ``pid``; None without one. Raises Unreachable."""

    def creating(self, pid: int | None) -> AbstractContextManager[None]:
        """Let files that this thread creates be born with their label, if the module can."""

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        """Return what :meth:`apply` would do to an image in ``directory``; touch nothing.

        ``names``: all that the image is to have there, as far as they are known.
        """

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
