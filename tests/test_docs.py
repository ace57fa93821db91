"""The pages say what the code does: error texts, commands, sources, and which commands are run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from mapsave import errors
from mapsave.cli import main, options

from tests.kit import pages, tree

FAQ = (tree.ROOT / "docs/faq.md").read_text()
COMPARISON = (tree.ROOT / "docs/comparison.md").read_text()
# Not QEMU's own documentation, which is in docs/devel/ there.
_FILE = re.compile(r"`((?:examples|tests|docs(?!/devel)|manager|policies)/[\w./-]+)`")
_SOURCE = re.compile(r"\b[VGNIPR]\d\b")


def errors_raised() -> Iterator[tuple[str | None, str]]:
    """Yield the texts in the code, with the ids of those that are given to an error directly."""
    ids = {kind.__name__: kind.id for kind in errors.classes()}
    for path in sorted((tree.ROOT / "manager/mapsave").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).removeprefix("errors.")
                for argument in node.args:
                    yield ids.get(name), _text(argument)
            elif isinstance(node, ast.Assign):
                yield None, _text(node.value)


def _text(node: ast.expr) -> str:
    """Return a text as the FAQ writes it: what differs each time is an ellipsis."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
        return re.sub("…+", "…", "".join(parts))
    if isinstance(node, ast.BinOp):
        return re.sub("…+", "…", _text(node.left) + _text(node.right))
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "…"


RAISED = list(errors_raised())
QUESTIONS = [
    (text, identity)
    for quoted, identity in re.findall(r'^### (".*") \[(.*)\]$', FAQ, re.MULTILINE)
    for text in re.findall(r'"(.*?)"', quoted)
]


@pytest.mark.parametrize(("text", "identity"), QUESTIONS)
def test_an_error_of_the_faq_is_in_the_code(text: str, identity: str) -> None:
    known = {kind.id for kind in errors.classes()}
    assert identity in known
    wanted = text.replace("others than root, mapsave's own user and the label policy's owner", "…")
    found = [of for of, raised in RAISED if wanted in raised]
    assert found, "no such text in the code"
    assert not any(found) or identity in found


def test_a_text_that_is_not_in_the_code_is_found() -> None:
    assert len(QUESTIONS) > 20
    assert not [raised for _, raised in RAISED if "the disk is on fire" in raised]


def test_every_claim_about_another_tool_has_a_source() -> None:
    table = COMPARISON.partition("## Sources")
    sources = set(re.findall(r"^\| ([VGNIPR]\d) \|", table[2], re.MULTILINE))
    rows = [line for line in table[0].splitlines() if line.startswith("| ")]
    used: set[str] = set()
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 8, row
        if not cells[0]:
            continue
        for cell in cells[2:]:
            assert cell == "–" or _SOURCE.search(cell), row
            used |= set(_SOURCE.findall(cell))
    assert used == sources


BLOCKS = list(pages.blocks())


def test_every_block_of_commands_says_whether_it_is_run() -> None:
    assert len(BLOCKS) > 20
    for block in BLOCKS:
        assert block.mark is not None, f"{block}: mark it; see tests/kit/pages.py"
        if block.mark.how == "tried by":
            for test in block.mark.what.split(", "):
                assert (tree.ROOT / test).is_file(), f"{block}: {test}"
        assert block.mark.what or block.mark.how == "run", f"{block}: say why"


def test_no_commands_are_outside_of_such_a_block() -> None:
    """An indented block cannot be marked; what is written with brackets is no command to run."""
    indented = re.compile(r"(?m)^\n {4}((?:\$ |mapsave |bash |apt )[^\[\]|\n]*)$")
    wrong = {page.name: indented.findall(page.read_text()) for page in pages.PAGES}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_are_as_they_are_written(block: pages.Block) -> None:
    """Their names, options and values; what they do is seen where the block is run."""
    for line in block.commands():
        words = pages.words(line)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words.pop(0)
        if words and words[0] == "mapsave":
            parse(words[1:])


# Whole commands within sentences; not those in which something is left out, or to be chosen.
_INLINE = re.compile(r"`(mapsave [^`|…\[]*)`")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_commands_in_sentences(page: Path) -> None:
    for command in _INLINE.findall(page.read_text()):
        words = pages.words(" ".join(command.split()))[1:]
        try:
            parse(words)
        except click.exceptions.Exit:
            pass  # --help
        except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
            pass  # the command is spoken of, or an option of it
        except click.UsageError as error:
            pytest.fail(f"{command}: {error.format_message()}")


def parse(words: list[str]) -> None:
    """Parse a command line of mapsave, and do nothing."""
    context = click.Context(main.mapsave, obj=options.Globals())
    command: click.Command = main.mapsave
    while isinstance(command, click.Group):
        with command.make_context("mapsave", words, parent=context) as made:
            rest = [*made._protected_args, *made.args]
            if not rest or rest[0].isupper():  # of any command
                return
            name, found, words = command.resolve_command(made, rest)
        assert found is not None, name
        command = found
    command.make_context("mapsave", words, parent=context).close()


@pytest.mark.parametrize("line", ["sav web01", "save web01 --than resume", "list --sort colour"])
def test_a_command_that_is_written_wrongly_is_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line.split())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in _FILE.findall(page.read_text()):
        assert (tree.ROOT / name).exists() or (tree.ROOT / "manager/mapsave" / name).exists(), name
