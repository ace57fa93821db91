"""What the Tab key offers: ``mapsave __complete SHELL WORD...``, run by ``completion``'s scripts.

The commands and options are those of the command line itself; click finds which of them the cursor
is at. The first line printed is the kind of what may follow (``plain``; ``file`` or ``dir``, which
the shell completes itself), each other one a candidate, and after a tab what it is.
"""

from __future__ import annotations

import dataclasses
import os

from click.shell_completion import CompletionItem, ShellComplete

from mapsave.cli import main, options

_SPACE = " \t\n"
# What each kind of quotes does not take as it is; without any, what the shell acts upon.
_SPECIAL = {"": " \t\\\"'`$&|;<>()[]{}*?!#~", '"': '\\"`$', "'": ""}
_ESCAPED_IN_QUOTES = '\\"`$\n'


@dataclasses.dataclass
class Word:
    """A word of a command line, without the quotes.

    ``quote`` is the one that is open at its end, and ``start`` where in ``value`` the part begins
    that readline replaces: after an open quote, or the last character that breaks words.
    """

    value: str = ""
    quote: str = ""
    start: int = 0


def split(line: str, breaks: str = "") -> list[Word]:
    """Return the words of a command line up to the cursor, as bash reads them; the last is the one
    at the cursor, empty after a space."""
    words = [Word()]
    is_begun = is_escaped = False
    for character in line:
        word = words[-1]
        if is_escaped:
            keeps = word.quote and character not in _ESCAPED_IN_QUOTES
            word.value += f"\\{character}" if keeps else character
            is_escaped = False
        elif character == "\\" and word.quote != "'":
            is_begun = is_escaped = True
        elif character == word.quote:
            word.quote, word.start = "", len(word.value)
        elif not word.quote and character in "\"'":
            is_begun = True
            word.quote, word.start = character, len(word.value)
        elif not word.quote and character in _SPACE:
            if is_begun:
                words.append(Word())
            is_begun = False
        else:
            is_begun = True
            word.value += character
            if not word.quote and character in breaks:
                word.start = len(word.value)
    return words


def quoted(value: str, word: Word) -> str:
    """Return what bash is to put in place of ``word``, from its ``start`` on."""
    rest = value[word.start :]
    if word.quote == "'":
        return rest.replace("'", "'\\''")
    return "".join(f"\\{c}" if c in _SPECIAL[word.quote] else c for c in rest)


def candidates(words: list[str], incomplete: str) -> list[CompletionItem[str]]:
    """Return what may be in place of ``incomplete`` after ``words``, those after the program."""
    shell = ShellComplete(main.mapsave, {"obj": options.Globals()}, "mapsave", "")
    found = shell.get_completions(words, incomplete)
    # Of "--guest=web" click completes the value alone.
    option, is_given, _ = incomplete.partition("=")
    if is_given and option.startswith("--"):
        for item in found:
            item.value = f"{option}={item.value}"
    return found


def text(shell: str, arguments: list[str]) -> str:
    """Return what is printed. The arguments are, for bash, the line up to the cursor and the
    characters that break words there; for others the words up to the cursor, the last one as it was
    typed, for zsh all."""
    if shell == "bash":
        found = split(arguments[0], arguments[1])
        words, last = [each.value for each in found[:-1]], found[-1]
    else:
        as_typed = arguments if shell == "zsh" else arguments[-1:]
        words = [*arguments[: -len(as_typed)], *(split(each)[-1].value for each in as_typed)]
        last = Word(words.pop())
    items = candidates(words[1:], last.value)
    kind = next((item.type for item in items if item.type != "plain"), "plain")
    lines = [kind]
    for item in items:
        # No shell takes a candidate of several lines.
        if item.type == "plain" and item.value.isprintable():
            value = quoted(item.value, last) if shell == "bash" else item.value
            lines.append(value if shell == "bash" or not item.help else f"{value}\t{item.help}")
    return "\n".join(lines) + "\n"


def run(arguments: list[str]) -> None:
    """Print the candidates. Nothing is offered where something is wrong with the line, or with the
    configuration: the command itself will say so."""
    try:
        shown = text(arguments[0], arguments[1:])
    except Exception:
        return
    os.write(1, shown.encode(errors="surrogateescape"))
