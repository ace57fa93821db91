"""What confines a process under AppArmor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Confinement:
    """What ``attr/current`` says: ``unconfined`` or ``NAME (MODE)``."""

    profile: str
    mode: str

    @classmethod
    def parse(cls, context: str) -> Confinement:
        """Return what ``context``, the text of ``attr/current``, means."""
        name, bracket, mode = context.rpartition(" (")
        if not bracket:
            return cls(context, "unconfined" if context == "unconfined" else "enforce")
        return cls(name, mode.rstrip(")"))

    @property
    def binding(self) -> bool:
        """Whether refusals are real: neither unconfined nor in complain mode."""
        return self.mode not in ("unconfined", "complain")

    @property
    def plain(self) -> bool:
        """Whether it is one profile of this namespace, not a stack or one of another."""
        return "//&" not in self.profile and not self.profile.startswith(":")
