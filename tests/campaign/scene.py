"""What a run has at hand, and what it notes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign import blows, guests
from tests.campaign.guests import Guest, World
from tests.campaign.places import Site
from tests.campaign.plan import NOTHING, Blow, Plan
from tests.kit import ram, state

IMAGE = "one.mapsave"
RETRY = "retry.mapsave"


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, negative for a signal; None where it did not end."""

    words: tuple[str, ...]
    code: int | None
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """The one JSON object that it printed, empty where it was killed before."""
        try:
            found = json.loads(self.stdout)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def error(self) -> dict[str, Any]:
        found = self.told.get("error")
        return found if isinstance(found, dict) else {}

    @property
    def error_id(self) -> str:
        return str(self.error.get("id", ""))

    def __str__(self) -> str:
        """Return the command and its end in a line."""
        said = self.error.get("message") or self.stderr.strip().splitlines()[-1:] or ""
        return f"{' '.join(self.words[:2])}: exit {self.code} {self.error_id} {said}".rstrip()


@dataclass
class Scene:
    """A run under way."""

    plan: Plan
    directory: Path
    site: Site
    world: World
    guest: Guest
    before: ram.Snapshot
    found: state.State
    trace: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    destinations: list[Guest] = field(default_factory=list)

    @property
    def image(self) -> Path:
        return self.site.images / IMAGE

    @property
    def away(self) -> Path:
        """Where the image directory is while it is moved away."""
        return self.site.images.with_name("away")

    def note(self, words: str) -> None:
        self.trace.append(words)

    def meet(self, words: str) -> None:
        """Note that a fault of the plan was met."""
        self.note(words)
        with guests.met_in(self.directory).open("a") as file:
            file.write(f"{words}\n")

    def violate(self, words: str) -> None:
        """Note what must not be."""
        self.trace.append(f"VIOLATION {words}")
        self.violations.append(words)

    def mapsave(self, *words: str, blow: Blow = NOTHING, local: bool = True) -> Done:
        """Run a command of mapsave, hit by ``blow``; what no command may do is a violation."""
        arguments = [*words, "--json", *(["--local"] if local else [])]
        done = blows.perform(self, blow, arguments)
        self.note(str(done))
        if done.code is None:
            self.violate(f"{done.words[0]} did not end: {done.stderr[-300:]}")
        elif done.code < 0 and not blow.kills:
            self.violate(f"died of signal {-done.code}: {done}")
        if "Traceback (most recent call last)" in done.stderr:
            self.violate(f"traceback: {done}: {done.stderr[-600:]}")
        elif done.code == 1:
            self.violate(f"unexpected failure: {done}")
        elif done.code is not None and done.code >= 0 and not done.told:
            self.violate(f"no JSON object: {done}: {done.stdout[:200]!r}")
        return done
