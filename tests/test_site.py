"""The site of the documentation: what lint builds without a warning has no link to nowhere."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.kit import tree

_PLANTED = """
[a page](nothing.md), [a heading](jobs.md#nothing), [a file](../examples/nothing.yaml),
[one that is there](jobs.md#hooks)
"""


def built(source: Path, target: Path) -> list[str]:
    """Build the site of ``source`` as lint does; return its warnings."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"),
            *("-c", tree.ROOT / "docs/site", "-d", target / "doctrees", source, target / "site"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert (done.returncode != 0) == bool(warnings), done
    return warnings


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    for name in ("README.md", "HACKING.md", "CHANGELOG.md"):
        shutil.copy(tree.ROOT / name, tmp_path)
    shutil.copytree(tree.ROOT / "docs", tmp_path / "docs")
    shutil.copytree(tree.ROOT / "examples", tmp_path / "examples")
    faq = tmp_path / "docs/faq.md"
    faq.write_text(faq.read_text() + _PLANTED)
    (tmp_path / "docs/forgotten.md").write_text("# Forgotten\n")
    found = "\n".join(built(tmp_path, tmp_path / "target"))
    for words in ("nothing.md", "'docs/jobs': 'nothing'", "nothing.yaml"):
        assert words in found, found
    assert found.count("WARNING") == 3
    # A page that has no place in the navigation is in it all the same.
    assert "forgotten" in (tmp_path / "target/site/docs/faq.html").read_text()
