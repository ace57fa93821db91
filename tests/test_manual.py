"""The manual pages: every command and option is in them, and groff has nothing against them."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from mapsave.cli import main, manual

from tests.kit import command_line, need, wait


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return manual.pages()


def test_every_option_has_help() -> None:
    missing = [
        f"{context.command_path} {parameter.opts[-1]}"
        for context in command_line.contexts()
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert not missing


def test_there_is_a_page_for_each_command_and_file(pages: dict[str, str]) -> None:
    names = [f"mapsave-{name}.1" for name in main.COMMANDS]
    assert set(pages) == {*names, "mapsave.1", "mapsaved.8", "mapsave.yaml.5"}
    save = pages["mapsave-save.1"].replace("\\-", "-")
    for words in ("-o, --image PATH", "--zero-pages [auto|multifd|legacy|none]", "--no-wait"):
        assert words in save
    assert "--debug" not in save
    assert "--debug" in pages["mapsave.1"].replace("\\-", "-")
    assert "mapsave job prune" in pages["mapsave-job.1"]
    keys = pages["mapsave.yaml.5"]
    for words in ("Keys of guests.NAME\n", "Keys of notify[]\n", "Keys of service.listen\n"):
        assert words in keys
    assert "priority\\fR: a number from \\-1000 to 1000" in keys


def test_no_paragraph_is_empty(pages: dict[str, str]) -> None:
    """mandoc -T lint warns of these; groff does not."""
    found = [
        name for name, text in pages.items() if re.search(r"^\.(S[HS].*|PP)\n\.PP$", text, re.M)
    ]
    assert not found


def test_groff_has_no_warnings(tmp_path: Path) -> None:
    need.skip_if(None if shutil.which("groff") else "groff is not installed")
    paths = manual.write(tmp_path)
    assert (tmp_path / "man8/mapsaved.8") in paths
    command = ["groff", "-man", "-Tutf8", "-ww", "-b", "-z", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=wait.LONG, check=True)
    assert done.stderr == ""
