"""What commands print: results for people or machines on stdout, errors on stderr.

With ``--json`` stdout gets exactly one JSON object, errors included: ``{"error": {…}}``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from mapsave import errors, strict_json, units
from mapsave.cli.options import Globals
from mapsave.history.states import State
from mapsave.jobs import outcome
from mapsave.jobs.outcome import Level
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.client import responses


# Noncharacters (Unicode, section 23.7), one for each colour until the text is printed.
_MARKS = {Level.WARNING: "\ufdd0", Level.ERROR: "\ufdd1"}
_END = "\ufdd2"
_COLOURS = {"\ufdd0": "\x1b[33m", "\ufdd1": "\x1b[1;31m", _END: "\x1b[0m"}


def result(given: Globals, data: Facts, text: str) -> None:
    """Print the outcome: ``data`` as JSON or ``text`` for people."""
    if given.json:
        say(strict_json.indented(data) + "\n")
    elif text:
        say(printable(text) + "\n")


def line(given: Globals, data: Facts, text: str) -> None:
    """Print one of several outcomes, each on a line: ``data`` as JSON or ``text`` for people."""
    say((strict_json.dumps(data, default=str) if given.json else printable(text)) + "\n")


def picture(given: Globals, path: str, drawn: str) -> None:
    """Write a picture to the file ``path``, and print where it is.

    Raises UsageError where it cannot be opened, OutputFailed.
    """
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (an error of its own)
    except OSError as error:
        raise errors.UsageError(
            f"cannot open {path!r} for the picture: {error.strerror}", hint="name another file"
        ) from None
    try:
        with file:
            file.write(drawn)
    except OSError as error:
        raise errors.OutputFailed(
            f"cannot write the picture to {path!r}: {error.strerror}", hint="free some space there"
        ) from None
    size = len(drawn.encode())
    facts = {"picture": os.path.abspath(path), "bytes": size}
    result(given, facts, f"{path}: {units.format_size(size)}")


def begun(given: Globals, operation: Facts) -> None:
    """Print an operation that was begun and is not waited for: for people only its id."""
    result(given, operation, str(operation["id"]))


def say(text: str) -> None:
    """Print ``text`` on stdout. Raises OutputFailed."""
    sys.stdout.write(text)
    sys.stdout.flush()


def marked(level: Level, text: str) -> str:
    """Return ``text`` so that ``result`` shows it in the colour of ``level`` on a terminal."""
    return f"{_MARKS[level]}{text}{_END}" if level in _MARKS else text


def coloured(text: str) -> str:
    """Return what ``marked`` has marked in colour, on a terminal; elsewhere without its marks.

    See https://no-color.org for $NO_COLOR.
    """
    is_wanted = (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    for mark, colour in _COLOURS.items():
        text = text.replace(mark, colour if is_wanted else "")
    return text


def printable(text: str) -> str:
    """Return ``text`` without what a terminal would act upon, and without broken characters."""
    clean = "\n".join(line if line.isprintable() else _clean(line) for line in text.split("\n"))
    coding = sys.stdout.encoding or "utf-8"
    return coloured(clean).encode(coding, "replace").decode(coding)


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() or c in _COLOURS else ascii(c)[1:-1] for c in line)


def clear_line() -> str:
    """Return what wipes the line of progress off a terminal; empty where stderr is not one."""
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def note(text: str) -> None:
    """Print a line on stderr, in place of the line of progress."""
    print(f"{clear_line()}{printable(f'mapsave: {text}')}", file=sys.stderr)


def failure(error: BaseException, given: Globals) -> int:
    """Print an error and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    ours = _as_ours(error)
    if given.json:
        with contextlib.suppress(errors.OutputFailed):
            say(strict_json.dumps({"error": ours.as_dict()}, indent=2, default=str) + "\n")
    if given.debug or ours.id == errors.MapsaveError.id:
        import traceback

        traceback.print_exception(error)
    print(printable(f"mapsave: {ours.message} [{ours.id}]"), file=sys.stderr)
    if ours.hint:
        print(printable(f"  hint: {ours.hint}"), file=sys.stderr)
    return ours.exit_code


def _as_ours(error: BaseException) -> errors.MapsaveError:
    if isinstance(error, errors.MapsaveError):
        return error
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        return errors.Interrupted("interrupted")
    if isinstance(error, click.UsageError):
        help_for = error.ctx.command_path if error.ctx else "mapsave"
        return errors.UsageError(error.format_message(), hint=f"see '{help_for} --help'")
    if isinstance(error, click.ClickException):
        return errors.UsageError(error.format_message())
    ours = errors.as_ours(error)
    ours.hint = "this is a bug in mapsave; please report it with the traceback above"
    return ours


def warnings(words: Iterable[str]) -> list[str]:
    """Return a line for each of the warnings of a result."""
    return [f"warning: {each}" for each in words]


def described(error: errors.ErrorDict) -> str:
    """Return an error of a result in words."""
    return f"{error['message']} [{error['id']}]"


def users(found: Iterable[Facts]) -> str:
    """Return who lives on an image: ``web01 (pid 123)``."""
    return ", ".join(f"{each['guest']} (pid {each['pid']})" for each in found)


def verified(found: Facts | None) -> str:
    """Return what was found when the data of an image was verified last, and how long ago."""
    if found is None:
        return "never verified"
    when = datetime.datetime.fromisoformat(str(found["time"]))
    ago = units.format_ago((datetime.datetime.now(datetime.UTC) - when).total_seconds())
    if found["outcome"] == "damaged":
        return marked(Level.ERROR, "DAMAGED")
    if found["outcome"] == "unreadable":
        return marked(Level.ERROR, f"UNREADABLE {ago}")
    word = "verified" if found["outcome"] == "verified" else "structure verified"
    return f"{word} {ago}"


def came_to(operation: responses.Operation) -> str:
    """Return what came of an operation of the service: its error, or how many guests fared how."""
    if operation.error:
        return described(operation.error)
    whole = outcome.whole(operation.kind, operation.result)
    return "" if whole is None else marked(whole.level, whole.words)


def state(operation: responses.Operation) -> str:
    """Return the state of an operation, with its colour where something has failed."""
    whole = outcome.whole(operation.kind, operation.result)
    level = Level.INFO if whole is None else whole.level
    return marked(Level.ERROR if operation.state == State.FAILED else level, operation.state)


def since(begun: datetime.datetime, ended: datetime.datetime | None = None) -> str:
    """Return how long it is from one time to another, without that to now."""
    seconds = ((ended or datetime.datetime.now(datetime.UTC)) - begun).total_seconds()
    return units.format_duration(max(seconds, 0))


def duration(result: Facts | None) -> str:
    """Return how long the operation of ``result`` took; without one, a dash."""
    seconds = (result or {}).get("duration_s")
    return units.format_duration(seconds) if isinstance(seconds, int | float) else "-"


def table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return rows as aligned columns, the last one ragged."""
    lines = [header, *rows]
    widths = [max(_length(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join("  ".join([*map(_padded, line[:-1], widths), line[-1]]) for line in lines)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _length(cell))


def _length(cell: str) -> int:
    # Most cells are ASCII, where no mark is: of tens of thousands it took a fifth of a second.
    return len(cell) if cell.isascii() else sum(c not in _COLOURS for c in cell)
