"""What a seed stands for: guest, options, faults. Nothing here depends on the machine."""

import random
from dataclasses import dataclass, field
from typing import Literal

from tests.kit.inject import Rule

World = Literal["qemu", "libvirt", "emulator"]
Then = Literal["quit", "resume", "leave"]
Disk = Literal["plain", "tmpfs", "ext4", "xfs"]
State = Literal["prelaunch", "running", "paused", "suspended"]

SAVE_STEPS = (
    *("begin", "label", "hand-over", "pause", "migrate", "complete"),
    *("resume", "commit", "committed", "end"),
)
RESTORE_STEPS = ("begin", "launch", "label", "load", "mark", "run", "end")


@dataclass(frozen=True)
class Blow:
    """What hits one command: rules for its system calls, a signal, or others at a step of it.

    ``strike`` is what ``tests/faults/killer.py`` takes: where, step, signals; ``guest:KILL`` is
    for the guest's QEMU. ``deed`` is done by others while the command stands still at a step.
    """

    rules: tuple[Rule, ...] = ()
    strike: tuple[str, str, str] | None = None
    deed: tuple[str, str] | None = None

    def __str__(self) -> str:
        """Return what happens, in words."""
        words = [str(rule) for rule in self.rules]
        words += ["struck " + " ".join(self.strike)] if self.strike else []
        words += [f"{self.deed[1]} at {self.deed[0]}"] if self.deed else []
        return "; ".join(words) or "nothing"

    @property
    def kills(self) -> bool:
        """Whether the command may end by SIGKILL."""
        rules = any(rule.action == "kill" and rule.argument == 9 for rule in self.rules)
        return rules or (self.strike is not None and self.strike[2] == "KILL")


NOTHING = Blow()


@dataclass(frozen=True)
class Shape:
    """A guest: machine, memory, contents, and the state that it is in before the save."""

    machine: str
    memory: int  # MiB
    pattern: str
    state: State
    extra: str = "plain"
    name: str = "web01"

    @property
    def firmware(self) -> bool:
        """Whether firmware runs in it, which changes the RAM that it uses itself."""
        return self.machine != "none"

    @property
    def ran(self) -> bool:
        """Whether it has run before the save."""
        return self.state != "prelaunch"


@dataclass(frozen=True)
class Plan:
    """All that a run does."""

    seed: int
    kind: str
    world: World
    shape: Shape
    then: Then
    save: tuple[str, ...]
    restore: tuple[str, ...]
    format: Literal["native", "libvirt"]
    disk: Disk = "plain"
    replaces: bool = False
    service: bool = False
    guest_rules: tuple[Rule, ...] = ()
    limit: tuple[str, int] | None = None  # of the guest's QEMU
    leave_free: int | None = None  # bytes left on the disk during the save
    before: str | None = None  # done before the save: a partial image is left over
    blow: Blow = NOTHING
    between: str | None = None  # done after a save that left something to recover
    recoveries: tuple[Blow, ...] = ()
    damage: int | None = None  # the seed of a change to the image's structure
    destination_rules: tuple[Rule, ...] = ()
    restore_blow: Blow = NOTHING
    retry: bool = True
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def arguments(self) -> list[str]:
        """The options of ``mapsave save``."""
        return ["--then", self.then, "--format", self.format, *self.save]

    @property
    def is_checkpoint(self) -> bool:
        """Whether the image shares the guest's RAM file."""
        return self.shape.extra == "shared"

    @property
    def guest_may_die(self) -> bool:
        """Whether something but mapsave ends the guest's QEMU."""
        return "guest dies" in self.tags

    @property
    def others_at_work(self) -> bool:
        """Whether others resume or stop the guest."""
        return "others" in self.tags

    def lines(self) -> list[str]:
        """Return the plan in words, a line each."""
        shape = self.shape
        found = [
            f"{self.kind}: {self.world} {shape.machine} {shape.memory}M {shape.pattern} "
            f"{shape.extra}, {shape.state}, named {shape.name!r}, images on {self.disk}",
            f"save {' '.join(self.arguments)}" + (" through the service" if self.service else ""),
        ]
        for word, rules in (("guest", self.guest_rules), ("destination", self.destination_rules)):
            found += [f"{word}'s QEMU: {rule}" for rule in rules]
        if self.limit:
            found.append("guest's QEMU: {} {} above what it has".format(*self.limit))
        if self.leave_free is not None:
            found.append(f"{self.leave_free} bytes are free")
        found += [f"before: {self.before}"] if self.before else []
        found += [f"save: {self.blow}"] if self.blow != NOTHING else []
        found += [f"between: {self.between}"] if self.between else []
        found += [f"recovery: {blow}" for blow in self.recoveries]
        found += [f"image damaged by seed {self.damage}"] if self.damage is not None else []
        found.append(f"restore {' '.join(self.restore)}".rstrip())
        found += [f"restore: {self.restore_blow}"] if self.restore_blow != NOTHING else []
        return found


_PATTERNS = ("dense", "sparse", "fragmented", "single_bytes", "empty")
_NAMES = ("web01", "web01", "web01", "my guest", "gäst é", "a'b\"c")


def _shape(rng: random.Random, world: World) -> Shape:
    pattern = rng.choice(_PATTERNS)
    memory = rng.choice((16, 16, 32, 48))
    name = rng.choice(_NAMES)
    if world == "emulator":
        pattern = rng.choice(("random", "sparse", "fragmented", "zero"))
        return Shape("none", memory, pattern, rng.choice(("prelaunch", "running")), name="web01")
    if world == "libvirt":
        machine = rng.choice(("pc", "q35"))
        return Shape(machine, memory, pattern, rng.choice(("paused", "running")), name="web01")
    machine = rng.choice(("none", "none", "pc", "pc", "q35"))
    states: tuple[State, ...] = ("prelaunch", "prelaunch", "running", "running", "paused")
    state = rng.choice(states)
    extra = "plain"
    if machine != "none":
        extra = rng.choice(("plain", "plain", "plain", "numa", "dimm", "memfd", "file", "pmem"))
        if rng.random() < 0.08 and machine == "pc":
            return Shape("pc", memory, pattern, "suspended", "floppy", name)
    elif rng.random() < 0.25:
        extra = rng.choice(("memfd", "file"))
    return Shape(machine, memory, pattern, state, extra, name)


def _save_options(rng: random.Random) -> tuple[str, ...]:
    found: list[str] = []
    if rng.random() < 0.2:
        found.append("--live")
    for option, values in (
        ("--direct-io", ("auto", "on", "off")),
        ("--zero-pages", ("auto", "multifd", "legacy", "none")),
        ("--preallocate", ("auto", "on", "off")),
        ("--channels", tuple(map(str, (1, 2, 3, 4, 8, 16)))),
    ):
        if rng.random() < 0.5:
            found += [option, rng.choice(values)]
    return tuple(found)


def _restore_options(rng: random.Random) -> tuple[str, ...]:
    found: list[str] = []
    if rng.random() < 0.4:
        found += ["--direct-io", rng.choice(("auto", "on", "off"))]
    if rng.random() < 0.4:
        found += ["--channels", str(rng.choice((1, 2, 4, 16)))]
    if rng.random() < 0.3:
        found.append(rng.choice(("--run", "--paused")))
    return tuple(found)


def base(seed: int, kind: str, world: World, rng: random.Random) -> Plan:
    """Return a plan of this kind and world in which nothing goes wrong yet."""
    native = world == "emulator" or (world == "qemu")
    return Plan(
        seed=seed,
        kind=kind,
        world=world,
        shape=_shape(rng, world),
        then=rng.choice(("quit", "quit", "resume", "leave")),
        save=_save_options(rng),
        restore=_restore_options(rng),
        format="native" if native or rng.random() < 0.3 else "libvirt",
        disk=rng.choice(("plain",) * 8 + ("tmpfs", "xfs")) if world == "qemu" else "plain",
        replaces=rng.random() < 0.2,
        service=False,
    )
