"""docs/migrating.md names commands and options that libvirt has."""

import re
import shutil
import subprocess

from tests.kit import need, tree

ROWS = re.findall(
    r"^\| (`.*?) \|",
    (tree.ROOT / "docs/migrating.md").read_text().partition("## Commands")[2].partition("\n## ")[0],
    re.MULTILINE,
)
NAMED = [span for row in ROWS for span in re.findall(r"`(.*?)`", row)]
# Commands that the options of the other rows are of.
_TAKE_OPTIONS = ("save", "restore")


def help_of(command: str) -> str:
    done = subprocess.run(["virsh", "help", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout


def test_virsh_has_them() -> None:
    need.skip_if(None if shutil.which("virsh") else "virsh is not installed")
    assert len(NAMED) > 12
    options = "".join(help_of(each) for each in _TAKE_OPTIONS)
    for span in NAMED:
        words = span.split()
        text = help_of(words[1]) if words[0] == "virsh" else options
        for option in (word for word in words if word.startswith("--")):
            assert option in text, span
