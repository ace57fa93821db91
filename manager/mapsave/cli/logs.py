"""``mapsave logs OPERATION``."""

from collections.abc import Callable

import click
import msgspec

from mapsave.cli import hosts, output
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.client import connection
from mapsave.operations.steps import Step
from mapsave.service.api import responses
from mapsave.strict_json import Facts


@click.command("logs", cls=Command)
@click.argument("operation")
@pass_globals
def command(given: Globals, /, operation: str) -> None:
    """Show the steps of an operation of the service, with their times.

    With --json each step has all that was recorded of it.
    """
    client = hosts.needed_service(given)
    found = client.get(f"/v1/operations/{connection.quoted(operation)}/steps")
    output.result(given, found, text(msgspec.convert(found, responses.Steps)))


def text(found: responses.Steps) -> str:
    """Return the steps for people, the outcome last."""
    of_it = found.operation
    what = of_it.guest or of_it.job or of_it.image or ""
    begun = f"{of_it.kind} {what}".rstrip()
    lines = [f"{_time(of_it.created)}  {begun}, requested by {of_it.user}"]
    lines += [f"{_time(each.time)}  {_step(each)}" for each in found.steps]
    if of_it.ended:
        came_to = output.came_to(of_it)
        line = f"{_time(of_it.ended)}  {output.state(of_it)}"
        lines.append(f"{line}: {came_to}" if came_to else line)
    return "\n".join(lines)


def _step(each: responses.Step) -> str:
    """Return a step in words, or only its name where this version does not know it."""
    words = _WORDS.get(each.step, "")
    said = words if isinstance(words, str) else words(each.data)
    return f"{each.step:<9}  {said}".rstrip()


def _time(seconds: float) -> str:
    return f"{output.moment(seconds)}.{int(seconds % 1 * 1000):03d}"


def _begin(data: Facts) -> str:
    """Return what a save or a restore is about."""
    if data.get("name"):
        then = {"quit": "shut the guest down", "resume": "resume the guest"}.get(
            str(data.get("then")), "leave the guest paused"
        )
        return f"to {data.get('directory')}/{data['name']}, then {then}"
    return f"from {data['image']}" if data.get("image") else ""


def _label(data: Facts) -> str:
    label = data.get("label")
    known = label if isinstance(label, dict) else {}
    if not known.get("value"):
        return "the image needs no label"
    return f"the image is labelled {known['value']} ({known.get('module')})"


_WORDS: dict[str, str | Callable[[Facts], str]] = {
    Step.BEGIN: _begin,
    Step.TIDY: lambda data: str(data.get("outcome") or ""),
    Step.RULES: "rules for the image are added to QEMU's profile",
    Step.LABEL: _label,
    Step.HAND_OVER: "QEMU is passed the image's descriptors",
    Step.PAUSE: "the guest is paused",
    Step.MIGRATE: "QEMU writes the guest to the image",
    Step.COMPLETE: "QEMU has written everything",
    Step.RESUME: "the guest is resumed",
    Step.COMMIT: "the image is verified, and gets its name",
    Step.COMMITTED: "the image is valid, on stable storage",
    Step.ATTACH: "the destination is running already",
    Step.LAUNCH: "the destination is started",
    Step.LOAD: "QEMU reads the image",
    Step.LOADED: "libvirt has read the image",
    Step.MARK: "the image is marked as restored",
    Step.RUN: "the guest is resumed",
    Step.BEHIND: "hooks are run",
}
