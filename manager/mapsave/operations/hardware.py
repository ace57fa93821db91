"""What a guest sees of its machine, and QEMU does not compare at a load: processors and options.

QEMU loads processors into those of another model, with other features or in another topology
without a word (10.0, ``target/i386/machine.c``, tried), and the guest fails later. So an image
records what the guest saw, as its QEMU described it, and a destination must be the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypedDict

from mapsave import errors, together
from mapsave.image.metadata import HardwarePart, Metadata
from mapsave.monitor.session import Session
from mapsave.operations import cpuid

_Value = bool | int | str

# Options of a machine are of these types, as QOM calls them; others are links, files, structures.
_OPTION_TYPES = frozenset(("bool", "OnOffAuto", "OnOffSplit", "size"))
# Options that the guest does not see (docs of -machine; hw/core/machine.c).
_HOST_OPTIONS = frozenset(
    ("aux-ram-share", "dump-guest-core", "graphics", "mem-merge", "suppress-vmdesc")
)
# What an x86 processor is beside its feature words (target/i386/cpu.c).
_PROCESSOR = frozenset(
    ("vendor", "family", "model", "stepping", "model-id", "level", "xlevel", "phys-bits", "kvm")
) | frozenset(("l3-cache", "legacy-cache", "pmu", "lmce", "tcg-cpuid", "vmware-cpuid-freq"))
_HYPERV = "hv-"
# The first QEMU that lists the properties of an object with their values (qapi/qom.json).
_LISTS_VALUES = (10, 1, 0)
# An option that was not set: the machine decides what it means, and does not report it.
_UNTOLD = "auto"


class Options(TypedDict):
    """What the guest sees that QEMU's program and its command line settle."""

    model: str
    topology: dict[str, int]
    machine: dict[str, _Value]
    processor: dict[str, _Value]


async def query(session: Session, known: Options | None = None) -> HardwarePart | None:
    """Return what the guest sees; None for a machine without processors (``-machine none``).

    ``known``, the ``options`` of a QEMU of the same program and command line, is not asked again.
    """
    try:
        cpus = await session.processors()
        first = str(cpus[0]["qom-path"])
    except (errors.CommandRefused, IndexError, KeyError):
        return None
    async with together.group() as tasks:
        words = tasks.create_task(_get(session, first, "feature-words"))
        options = tasks.create_task(_asked(session, first)) if known is None else None
    told = known if options is None else options.result()
    assert told is not None
    found: HardwarePart = {
        "target": str(cpus[0].get("target", "")),
        "model": told["model"],
        "vcpus": [_position(cpu.get("props", {})) for cpu in cpus],
        "machine": told["machine"],
    }
    if told["topology"]:
        found["topology"] = told["topology"]
    if isinstance(registers := words.result(), list):
        found["features"] = cpuid.words(registers)
        found["processor"] = told["processor"]
    return found


async def _asked(session: Session, processor: str) -> Options:
    async with together.group() as tasks:
        ask = tasks.create_task
        model, levels = ask(_get(session, processor, "type")), ask(_get(session, "/machine", "smp"))
        machine = ask(_options(session, "/machine", _is_option))
        options = ask(_options(session, processor, _is_of_processor))
    topology = found if isinstance(found := levels.result(), dict) else {}
    return {
        "model": str(model.result()),
        "topology": {str(level): int(count) for level, count in topology.items()},
        "machine": machine.result(),
        "processor": options.result(),
    }


def options(found: HardwarePart) -> Options:
    """Return the part of ``found`` that need not be asked again."""
    return {
        "model": found["model"],
        "topology": found.get("topology", {}),
        "machine": found["machine"],
        "processor": found.get("processor", {}),
    }


async def machine_type(session: Session) -> str:
    """Return the machine type as resolved (``pc`` is ``pc-i440fx-10.0``): what the stream names."""
    found = await session.execute("qom-get", {"path": "/machine", "property": "type"})
    return str(found).removesuffix("-machine")


async def architecture(session: Session, found: HardwarePart | None) -> str:
    """Return what ``query-target`` calls the architecture; processors are reported with it."""
    told = found["target"] if found is not None else ""
    return told or str((await session.execute("query-target"))["arch"])


def _position(props: Mapping[str, object]) -> str:
    """Return where a processor is, as ``-device`` takes it: ``socket-id=0,core-id=1``."""
    return ",".join(f"{level}={props[level]}" for level in sorted(props))


def _is_option(name: str, kind: str) -> bool:
    return kind in _OPTION_TYPES and name not in _HOST_OPTIONS


def _is_of_processor(name: str, _: str) -> bool:
    return name in _PROCESSOR or name.startswith(_HYPERV)


async def _options(
    session: Session, path: str, wanted: Callable[[str, str], bool]
) -> dict[str, _Value]:
    """Return those properties of a QOM object that ``wanted`` takes by name and type."""
    if session.version.release >= _LISTS_VALUES:
        (listed,) = await session.execute("qom-list-get", {"paths": [path]})
        told = {each["name"]: (each["type"], each.get("value")) for each in listed["properties"]}
        found = {name: told[name][1] for name in sorted(told) if wanted(name, told[name][0])}
    else:
        listed = await session.execute("qom-list", {"path": path})
        names = sorted(str(each["name"]) for each in listed if wanted(each["name"], each["type"]))
        values = await together.all_of(_get(session, path, name) for name in names)
        found = dict(zip(names, values, strict=True))
    return {name: value for name, value in found.items() if isinstance(value, bool | int | str)}


async def _get(session: Session, path: str, name: str) -> object:
    """Return a property; None where QEMU does not have it, or does not tell it."""
    try:
        answer: object = await session.execute("qom-get", {"path": path, "property": name})
    except errors.CommandRefused:
        return None
    return answer


def compare(here: HardwarePart | None, metadata: Metadata, *, force: bool) -> list[str]:
    """Compare what the guest would see ``here`` with what it saw; return warnings.

    ``force`` makes a warning of a difference. Raises DestinationMismatch.
    """
    saved = metadata.get("hardware")
    if saved is None:
        if here is None:
            return []
        return [
            "the image does not record the guest's processors and machine options, so they were "
            "not compared"
        ]
    if here is None:
        here = {}
    different = list(differences(saved, here))
    warnings = list(untold(saved, here))
    if not different:
        return warnings
    text = "; ".join(different)
    if force:
        return [*warnings, f"the guest will see another machine than it was saved in: {text}"]
    raise errors.DestinationMismatch(
        f"the guest would see another machine than it was saved in: {text}",
        hint="start the destination with the same -cpu, -smp and -machine, on a host whose "
        "processor has these features; --force restores all the same",
        differences=different,
    )


def differences(saved: HardwarePart, here: HardwarePart) -> Iterator[str]:
    """Yield what the guest would see otherwise; what one of them does not tell is not compared."""
    if saved.get("model") != here.get("model"):
        yield f"processor {saved.get('model')!r}, here {here.get('model')!r}"
    there, now = saved.get("vcpus", []), here.get("vcpus", [])
    if len(there) != len(now):
        yield f"{len(there)} vCPUs, here {len(now)}"
    elif saved.get("topology", {}) != here.get("topology", {}):
        yield from _changed("topology", saved.get("topology", {}), here.get("topology", {}))
    elif there != now:
        index = next(at for at, place in enumerate(there) if place != now[at])
        yield f"vCPU {index} at {there[index]}, here at {now[index]}"
    if "features" in saved and "features" in here:
        missing, added = cpuid.compared(saved["features"], here["features"])
        if missing:
            yield f"processor features missing here: {', '.join(missing)}"
        if added:
            yield f"processor features only here: {', '.join(added)}"
    if saved.get("model") == here.get("model"):  # which would say it all
        yield from _changed("processor", saved.get("processor", {}), here.get("processor", {}))
    yield from _changed("machine option", saved.get("machine", {}), here.get("machine", {}))


def _changed(what: str, saved: Mapping[str, _Value], here: Mapping[str, _Value]) -> Iterator[str]:
    for name in sorted(saved.keys() & here.keys()):
        if saved[name] != here[name] and _UNTOLD not in (saved[name], here[name]):
            yield f"{what} {name}={_word(saved[name])}, here {_word(here[name])}"


def untold(saved: HardwarePart, here: HardwarePart) -> Iterator[str]:
    """Yield a warning for what cannot be compared, since one of the two does not tell it."""
    before, now = saved.get("machine", {}), here.get("machine", {})
    names = [
        name
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name] and _UNTOLD in (before[name], now[name])
    ]
    if names:
        yield f"machine options that QEMU does not report were not compared: {', '.join(names)}"
    if ("features" in saved) != ("features" in here):
        yield "the processor's features could not be compared: one QEMU does not report them"


def _word(value: _Value) -> str:
    """Return a value as QEMU's options spell it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
