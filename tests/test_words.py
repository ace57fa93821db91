"""Users read plain English: none of the words below is in what mapsave shows them.

Looked at are all texts in the code (errors, hints, options, progress, log, webhooks), the help of
each command, the catalogue of errors, the documentation and the examples. The emulated QEMU's
texts are QEMU's.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import error_table
from mapsave.cli import manual

from tests.kit import command_line, tree

# A pattern, and what to write instead.
INSTEAD = {
    r"\bbehind\b(?! a proxy)": "after, then",
    r"\btells?\b": "report, return, show",
    r"\btold\b(?! to\b)": "reported, notified",
    r"\bstands?\b": "is, are",
    r"\banew\b": "again; reload, restart",
    r"\bmeanwhile\b": "in the meantime, or nothing",
    r"\bfor ever\b": "forever",
    r"\b(?:who(?:m|so)?ever|somebody|nobody)\b": "the caller, another process, no one, the passive",
    r"\blet(?:s|ting)? (?:it|the guest|them|guests) (?:run|continue)\b": "resume",
    r"\bcontinue[sd]? (?:the|its|a) guest\b": "resume",
    r"\bend(?:s|ed)? (?:it|(?:the|its|that|a) (?:guest|QEMU|domain))\b": "shut down, quit, stop",
    r"\bguest (?:was |is )?ended\b": "shut down",
    r"\bp[ou]ts? (?:\w+ ){0,3}back\b": "roll back, resume, restore",
    r"\b(?:its|QEMU's|libvirt's)(?: own| last)? words\b": "output, message",
    r"\b(?:guests?|domains?) of libvirt\b": "libvirt guests",
    r"\bdirectory of the (?:jobs|hooks|images)\b": "the jobs directory",
    r"(?<!\bthere )\b(?:is|are) no (?!longer\b|more\b|one\b)": "is not a",
    r"\bthat are none\b": "that could not be loaded",
    r"\bat rest\b": "idle, after the save",
    r"\bsurely\b": "leave it out, or say what is uncertain",
    r"\b(?:mend(?:s|ed)?|nevertheless|dearest|half-way|half way)\b": "fix; anyway; highest; partly",
    r"\bfor want of\b|\bas of late\b|\bside by side\b": "lack of; recent; in parallel",
    r"\b(?:disk|service) is well\b|\bbe well\b": "works, healthy",
    r"<{7} |>{7} ": "one of the two sides of a merge",
}
WORDS = re.compile("|".join(INSTEAD), re.IGNORECASE)


def wrong(text: str) -> list[str]:
    """Return the words in ``text`` that users should not have to read, with what is around."""
    flat = re.sub(r"\s+", " ", text)
    return [flat[max(0, m.start() - 40) : m.end() + 30] for m in WORDS.finditer(flat)]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and value of each text in Python code that is not a docstring."""
    parsed = ast.parse(source)
    inner = {
        id(part)
        for node in ast.walk(parsed)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    inner |= {id(node.value) for node in ast.walk(parsed) if isinstance(node, ast.Expr)}
    for node in ast.walk(parsed):
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            known = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, known))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


CODE = [
    path
    for path in sorted((tree.ROOT / "manager/mapsave").rglob("*.py"))
    if "emulator" not in path.parts
]
PAGES = [*tree.ROOT.glob("*.md"), *sorted((tree.ROOT / "docs").glob("*.md"))]
EXAMPLES = [path for path in sorted((tree.ROOT / "examples").rglob("*")) if path.is_file()]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_texts_of_the_code(path: Path) -> None:
    found = [
        f"{path}:{line}: {part}"
        for line, text in texts(path.read_text())
        if text.count(" ") >= 2
        for part in wrong(text)
    ]
    assert not found, "\n".join(found)


def test_help_of_every_command() -> None:
    found = [
        f"{context.command_path}: {part}"
        for context in command_line.contexts()
        for part in wrong(context.command.get_help(context))
    ]
    assert not found, "\n".join(found)


def test_manual_pages() -> None:
    assert not [part for text in manual.pages().values() for part in wrong(text)]


def test_catalogue_of_errors() -> None:
    assert not wrong(error_table.table())


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=lambda path: path.name)
def test_documentation(path: Path) -> None:
    text = path.read_text().partition("## Glossary")[0]  # which has the words to avoid
    assert not wrong(text), "\n".join(wrong(text))


def test_the_words_are_found() -> None:
    for text in ("see whether somebody has let it run", "it is told anew", "the file is no image"):
        assert wrong(text)
    assert wrong("<<<<<<< HEAD")
    assert not wrong("QEMU is told to quit; there is no image, and it is no longer needed")
