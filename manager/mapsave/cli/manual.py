"""The manual pages, made of the definitions: ``python -m mapsave.cli.manual DIRECTORY``.

One page for each command from the command line itself, mapsaved(8), and mapsave.yaml(5) from the
keys of the YAML files. The macros are those of man(7), as groff and mandoc have them.
"""

import inspect
import os
import re
import sys
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

import mapsave
from mapsave import config, key_text, keys
from mapsave.cli import main, options
from mapsave.fleet import settings
from mapsave.jobs import job, scrub_job
from mapsave.keys import Keys
from mapsave.labels import policy

_SIGNALS = """\
SIGTERM and SIGINT stop the service: it starts nothing new, cancels what is waiting, and finishes or
cancels what is running, as `service.on_stop` says. SIGHUP reloads the configuration and the jobs;
if anything in them is wrong, nothing changes, and the log says what."""
_ENVIRONMENT = {
    config.VARIABLE: "The configuration file, where --config names none.",
    settings.VARIABLE: "The fleet's file, where --fleet names none.",
    "NO_COLOR": "If it is not empty, nothing is printed in colour.",
}
_FILES = (
    ("Configuration", config.Config, f"Where mapsave looks for it: {config.SYSTEM_FILE}"),
    ("Jobs", job.Job, "A file for each job, in the directory `jobs`"),
    ("Scrub jobs", scrub_job.ScrubJob, "A job of kind `scrub`, which verifies images"),
    ("Fleet", settings.Settings, f"Many hosts; where mapsave looks for it: {settings.SYSTEM_FILE}"),
    ("Label policies", policy.Policy, "A file for each policy, in the directory `policies`"),
)
_WRONG_IN_ROFF = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti"}


def pages() -> dict[str, str]:
    """Return the text of each page by its name, such as ``mapsave-save.1``."""
    context = click.Context(main.mapsave, info_name="mapsave")
    found = {"mapsave.1": _overview(context)}
    for name in main.mapsave.list_commands(context):
        command = main.mapsave.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        title = f"mapsave-{name}"
        found[f"{title}.1"] = _page(title, 1, _summary(name), [*_command(below, "SH")])
        if name == "serve":
            lines = [*_command(click.Context(command, info_name="mapsaved"), "SH")]
            lines += [".SH SIGNALS", *_paragraphs(_SIGNALS), *_places()]
            found["mapsaved.8"] = _page("mapsaved", 8, "the service of mapsave", lines)
    found["mapsave.yaml.5"] = _yaml()
    return found


def write(directory: Path) -> list[Path]:
    """Write the pages below ``directory``, as man(1) looks for them; return their paths."""
    paths = []
    for name, text in pages().items():
        path = directory / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths


def _page(name: str, section: int, summary: str, lines: list[str]) -> str:
    day = time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    head = f'"{name.upper()}" "{section}" "{time.strftime("%Y-%m-%d", day)}"'
    also = ["mapsave(1)", "mapsaved(8)", "mapsave.yaml(5)"]
    also = [each for each in also if each != f"{name}({section})"]
    return "\n".join(
        [
            f'.TH {head} "mapsave {mapsave.__version__}" "mapsave"',
            *(".SH NAME", f"{_roff(name)} \\- {_roff(summary)}"),
            # Headings begin a paragraph themselves; mandoc warns of a second one.
            re.sub(r"(?m)^(\.S[HS] .*)\n\.PP$", r"\1", "\n".join(lines)),
            *(".SH SEE ALSO", ",\n".join(f".BR {_roff(each[:-3])} {each[-3:]}" for each in also)),
            "",
        ]
    )


def _summary(name: str) -> str:
    text = main.COMMANDS[name].removesuffix(".")
    return text[0].lower() + text[1:]


def _command(context: click.Context, section: str) -> Iterator[str]:
    """Yield usage, description and options of a command, and of those below it."""
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    words = f"{_bold(context.command_path)} {_roff(usage)}"
    yield from (".SH SYNOPSIS", words) if section == "SH" else (".PP", words)
    if section == "SH":
        yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    common = {each.name for each in options.global_options()}
    own = [each for each in command.params if each.name not in common]
    if records := [each for each in own if isinstance(each, click.Option)]:
        yield ".SH OPTIONS" if section == "SH" else ".PP\nOptions:"
        yield from _options(records, context)
    if isinstance(command, click.Group) and command is not main.mapsave:
        yield ".SH COMMANDS"
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield f".SS {_roff(name)}"
            yield from _command(click.Context(below, info_name=name, parent=context), "SS")


def _overview(context: click.Context) -> str:
    """Return mapsave(1), which has what all commands have in common."""
    lines = [*_command(context, "SH"), ".SH COMMANDS"]
    lines += _list((_bold(f"mapsave-{name}(1)"), text) for name, text in main.COMMANDS.items())
    lines += [".SH GLOBAL OPTIONS", *_paragraphs("Before or after the name of the command:")]
    lines += _options(options.global_options(), context)
    lines += [".SH ENVIRONMENT"]
    lines += _list((_bold(name), text) for name, text in _ENVIRONMENT.items())
    lines += _places()
    return _page("mapsave", 1, "save running QEMU guests to disk and restore them", lines)


def _places() -> Iterator[str]:
    """Yield the paths that hold for root without a configuration."""
    yield ".SH FILES"
    root = config.defaults({}, root=True)
    places = {str(config.SYSTEM_FILE): "The configuration, see mapsave.yaml(5)."}
    for name, field in keys.fields(config.Config).items():
        if isinstance(path := getattr(root, field.name), Path):
            text = str(keys.described(field.type, "description"))
            places[str(path)] = f"{text} `{name}` in the configuration sets another."
    yield from _list((_bold(path), text) for path, text in places.items())


def _options(found: Iterable[click.Parameter], context: click.Context) -> Iterator[str]:
    records = [record for each in found if (record := each.get_help_record(context))]
    yield from _list((_bold(term), text) for term, text in records)


def _yaml() -> str:
    lines = [".SH DESCRIPTION"]
    lines += _paragraphs(
        "mapsave reads YAML: its configuration, jobs and label policies. A key that is not known "
        "is an error, which names file and line. `mapsave config schema` prints the JSON Schema of "
        "each for editors."
    )
    for title, kind, where in _FILES:
        lines += [f".SH {title.upper()}", *_paragraphs(f"{_about(kind)}\n\n{where}.")]
        lines += _keys(kind, "")
    return _page("mapsave.yaml", 5, "configuration, jobs and label policies of mapsave", lines)


def _keys(kind: type, path: str) -> Iterator[str]:
    """Yield the keys of a class, and below them those of the mappings among them."""
    found = keys.fields(kind)
    yield from _list((_key(name, each.type), _meaning(each)) for name, each in found.items())
    for name, each in found.items():
        for inner, mark in _mappings(each.type):
            yield f".SS Keys of {_roff(path + name + mark)}"
            yield from _paragraphs(_about(inner))
            yield from _keys(inner, f"{path}{name}{mark}.")


def _about(kind: type) -> str:
    """Return the first sentence about a class of keys; the others are about its code."""
    sentence, end, _ = " ".join((kind.__doc__ or "").split()).partition(". ")
    return (sentence + end.rstrip()).replace("``", "`")


def _mappings(kind: Any, mark: str = "") -> Iterator[tuple[type, str]]:
    """Yield the classes of keys that a value of a type may be or hold, and how they are reached."""
    core, _ = keys.peel(kind)
    if isinstance(core, type) and issubclass(core, Keys):
        yield core, mark
        return
    origin = typing.get_origin(core)
    inner = "[]" if origin is tuple else ".NAME" if origin not in (None, typing.Union) else ""
    for part in typing.get_args(core):
        yield from _mappings(part, mark + inner)


def _key(name: str, kind: Any) -> str:
    return f"{_bold(name)}: {_roff(key_text.value(kind))}"


def _meaning(field: Any) -> str:
    text = str(keys.described(field.type, "description"))
    default = key_text.default(field)
    if default == "required":
        return f"{text} Required."
    return f"{text} Default: {default}." if default else text


def _list(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield terms, which are roff already, each with its text."""
    for term, text in pairs:
        yield from (".TP", term, _roff(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; after \\b lines stay as they are, as click has it."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        yield ".PP"
        if paragraph.startswith("\b"):
            lines = paragraph.removeprefix("\b").strip("\n").splitlines()
            yield from (".nf", *map(_roff, lines), ".fi")
        else:
            yield _roff(" ".join(paragraph.split()))


def _bold(text: str) -> str:
    return f"\\fB{_roff(text)}\\fR"


def _roff(text: str) -> str:
    """Return text as roff prints it unchanged, and in bold what Markdown has as code."""
    safe = "".join(_WRONG_IN_ROFF.get(character, character) for character in text)
    safe = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", safe)
    return f"\\&{safe}" if safe.startswith((".", "\\(aq")) else safe


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
