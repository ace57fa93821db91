"""``mapsave logs OPERATION``."""

import datetime
from collections.abc import Callable, Iterator

import click

from mapsave import strict_json, typed, units
from mapsave.cli import candidates, hosts, options, output, streams
from mapsave.cli.options import Command, Globals, pass_globals
from mapsave.cli.service_client import ServiceClient
from mapsave.client import exchange, responses
from mapsave.client.exchange import Answer
from mapsave.history.states import ENDED
from mapsave.operations.steps import Step
from mapsave.strict_json import Facts


@click.command("logs", cls=Command)
@click.argument("operation", shell_complete=candidates.OPERATIONS)
@click.option("--follow", "-f", is_flag=True, help="Print steps as they are taken, to the end.")
@options.picture
@pass_globals
def command(given: Globals, /, operation: str, follow: bool, picture: str | None) -> None:
    """Show the steps of an operation of the service, with their times.

    With --json each step has all that was recorded of it; with --follow too it is one step a line,
    and the operation once it has ended. A picture has phases and rate over time.
    """
    client = hosts.needed_service(given)
    path = exchange.operation(operation)
    if picture is not None:
        output.picture(given, picture, client.operation_picture(operation))
        return
    if not follow:
        found = client.get(f"{path}/steps")
        output.result(given, found, "\n".join(_lines(typed.convert(found, responses.Steps))))
        return
    with client.until_interrupted():
        shown = 0
        for found in _growing(client, client.get(path)["id"]):
            if not streams.is_read():
                return
            lines = _objects(found) if given.json else _lines(typed.convert(found, responses.Steps))
            for line in lines[shown:]:
                output.say(output.printable(line) + "\n")
            shown = len(lines)


def _growing(client: ServiceClient, number: str) -> Iterator[Answer]:
    """Yield the operation with its steps, each time that there are more of them, until it ends.

    Raises UnknownOperation, ServiceUnreachable, NotPermitted.
    """
    path = exchange.operation(number)
    now = client.get(path)
    while True:
        found = client.get(f"{path}/steps")
        yield found
        if found["operation"]["state"] in ENDED:
            return
        step = now["step"]
        while now["step"] == step and now["state"] not in ENDED:
            now = client.get(path, wait=30, since=now["revision"])


def _objects(found: Answer) -> list[str]:
    """Return the steps as JSON, the operation last once it has ended."""
    over = [found["operation"]] if found["operation"]["ended"] else []
    return [strict_json.dumps(each) for each in (*found["steps"], *over)]


def _lines(found: responses.Steps) -> list[str]:
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
    return lines


def _step(each: responses.Step) -> str:
    """Return a step in words, or only its name where this version does not know it."""
    words = _WORDS.get(each.step, "")
    said = words if isinstance(words, str) else words(each.data)
    return f"{each.step:<9}  {said}".rstrip()


def _time(when: datetime.datetime) -> str:
    return units.format_time(when, precisely=True)


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
