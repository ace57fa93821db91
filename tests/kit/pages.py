"""The blocks of commands in the documentation, and what is said about running them.

Before each block is one of these marks, as a comment that readers do not see:

    <!-- run -->                    by tests/service/test_docs.py, as it is
    <!-- run after: COMMAND -->     the same, once that was run
    <!-- tried by tests/... -->     that test, or those, do the same, with names of their own
    <!-- not run: REASON -->
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kit import tree

PAGES = [tree.ROOT / "README.md", *sorted((tree.ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<how>run|tried by|not run)(?: after)?:? ?(?P<what>.*?) ?-->\n)?"
    r"^(?P<indent> *)```(?P<language>sh|console|python)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Mark:
    """How a block is run, and by what, after what, or why not."""

    how: str
    what: str


@dataclass(frozen=True)
class Block:
    """A block of commands, and where it is."""

    page: Path
    line: int
    language: str
    text: str
    mark: Mark | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(tree.ROOT)}:{self.line}"

    def commands(self) -> Iterator[str]:
        """Yield the lines of commands, without prompts and with those that they continue on."""
        if self.language == "python":
            return
        text = self.text.replace("\\\n", " ")
        for line in text.splitlines():
            stripped = line.strip()
            if self.language == "console":
                if not stripped.startswith("$ "):
                    continue
                stripped = stripped[2:]
            yield from re.findall(r"\$\((mapsave [^)]*)\)", stripped)
            yield stripped


def blocks() -> Iterator[Block]:
    """Yield the blocks of all pages."""
    for page in PAGES:
        text = page.read_text()
        for found in _BLOCK.finditer(text):
            indent = found["indent"]
            lines = [line.removeprefix(indent) for line in found["text"].splitlines()]
            mark = Mark(found["how"], found["what"]) if found["how"] else None
            line = text.count("\n", 0, found.start("indent")) + 1
            yield Block(page, line, found["language"], "\n".join(lines) + "\n", mark)


def words(line: str) -> list[str]:
    """Return the words of the first command in a line; none where the shell must expand more."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found = list(lexer)
    except ValueError:  # a quote that goes on in the next line
        return []
    for number, word in enumerate(found):
        if set(word) <= set("();<>|&"):
            return found[:number]
    return found
