"""Journals that rotted: the guest ends as it was, or in a committed image; never in both."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME
from tests.kit import cli, inject, qemu

SAVE = ("save", NAME, "--image", IMAGE, "--json")


def _rot(path: Path, what: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if what == "first":
        lines[0] = b"\xff" + lines[0][1:]
    elif what == "last":
        lines[-1] = lines[-1].replace(b'"step"', b'"stop"')
    elif what == "nested":
        lines = [b"[" * 100_000, b"\n"]
    else:
        lines = [bytes(len(line)) for line in lines]
    path.write_bytes(b"".join(lines))


def _kept(site: cli.Site) -> None:
    """See that the damaged journal is kept, and is all that is left."""
    (left,) = struck.journals(site)
    assert left.name.endswith(".jsonl.damaged")
    done = site.run("recover", "--json", check=0).json()
    assert (done["operations"], done["damaged"]) == ([], [str(left)])


@pytest.mark.parametrize("what", ["first", "last", "nested", "zeros"])
@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("label", "save rolled back"),
        ("pause", "save rolled back"),
        ("migrate", "save rolled back"),
        ("complete", "image committed"),
        ("commit", "image committed"),
        ("committed", "image committed"),
    ],
)
def test_a_save_whose_journal_is_damaged(
    site: cli.Site, guest: qemu.Qemu, step: str, outcome: str, what: str
) -> None:
    struck.run(site, "after", step, "KILL", *SAVE)
    (journal,) = struck.journals(site)
    _rot(journal, what)
    is_lost = step == "committed" and what in ("nested", "zeros")  # no partial image says it either
    (line,) = site.run("recover", "--json", check=3 if is_lost else 0).json()["operations"]
    assert "was kept as" in line["warnings"][-1]
    _kept(site)
    assert not struck.partials(site)
    if is_lost:
        assert line["error"]["id"] == "recover.journal_lost"
        assert "'query-status'" in line["error"]["hint"]
        assert (guest.status(), struck.states(site)) == ("postmigrate", {IMAGE: "saved"})
        return
    assert line["outcome"] == outcome
    if outcome == "save rolled back":
        assert (guest.status(), struck.states(site)) == ("running", {})
    else:
        guest.wait()
        site.run("verify", IMAGE, check=0)
        assert struck.states(site) == {IMAGE: "saved"}


@pytest.mark.parametrize("fill", [b"", b"\0"])
def test_a_paused_guest_whose_last_line_lost_its_end(
    site: cli.Site, guest: qemu.Qemu, fill: bytes
) -> None:
    """A line that is cut may be of a step that was not taken, or was taken and has rotten since."""
    struck.run(site, "before", "migrate", "KILL", *SAVE)
    (journal,) = struck.journals(site)
    whole = journal.read_bytes()
    assert guest.status() == "paused"
    journal.write_bytes(whole[:-1000] + 1000 * fill)
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert line["outcome"] == "save rolled back"
    assert guest.status() == "running"
    assert struck.journals(site) == []


@pytest.mark.parametrize("length", [0, 30])
def test_a_journal_cut_to_its_beginning(site: cli.Site, guest: qemu.Qemu, length: int) -> None:
    """As if its manager had died before the first step; but there is its partial image."""
    struck.run(site, "after", "complete", "KILL", *SAVE)
    os.truncate(struck.journals(site)[0], length)
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert line["outcome"] == "image committed"
    guest.wait()
    assert struck.states(site) == {IMAGE: "saved"}
    _kept(site)


def test_an_empty_journal_of_a_save_that_had_not_begun(site: cli.Site, guest: qemu.Qemu) -> None:
    struck.run(site, "after", "begin", "KILL", *SAVE)
    os.truncate(struck.journals(site)[0], 0)
    assert site.run("recover", "--json", check=0).json()["operations"] == []
    assert not struck.journals(site)
    assert guest.status() == "running"


@pytest.mark.parametrize("what", ["last", "zeros"])
@pytest.mark.parametrize("then", ["resume", "quit"])
def test_a_guest_that_runs_beside_its_image_is_not_in_it(
    site: cli.Site, guest: qemu.Qemu, then: str, what: str
) -> None:
    """Its owner resumed it after a save that was to quit: the image is marked all the same."""
    step = "committed" if what == "last" else "commit"
    struck.run(site, "after", step, "KILL", *SAVE, "--then", then)
    _rot(struck.journals(site)[0], what)
    if then == "quit":
        guest.control.execute("cont")
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert line["error"] is None
    assert guest.status() == "running"
    wanted = {"last": {IMAGE: "restored" if then == "quit" else "saved"}, "zeros": {}}[what]
    assert struck.states(site) == wanted, line


@pytest.mark.parametrize("what", ["first", "last"])
@pytest.mark.parametrize(
    ("where", "step"),
    [("after", "launch"), ("after", "load"), ("after", "mark"), ("after", "run"), ("after", "end")],
)
def test_a_restore_whose_journal_is_damaged(
    site: cli.Site, guest: qemu.Qemu, where: str, step: str, what: str
) -> None:
    site.run(*SAVE, check=0)
    guest.wait()
    killed = struck.run(site, where, step, "KILL", "restore", IMAGE)
    assert killed.returncode == -signal.SIGKILL
    _rot(struck.journals(site)[0], what)
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    _kept(site)
    (state,) = struck.states(site).values()
    if step in ("launch", "load"):
        assert state == "saved"
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"
        return
    assert state == "restored"
    with guest.successor() as restored:
        is_known = step == "end" or (step == "run" and what == "first")
        assert restored.status() == ("running" if is_known else "paused"), line


def _bad_journals(directory: Path) -> None:
    texts: dict[str, bytes] = {
        "save-nested.jsonl": b"[" * 100_000 + b"\n",
        "save-keys.jsonl": b'{"step": "begin", "kind": "save", "guest": "lost"}\n',
        "save-types.jsonl": b'{"step": "begin", "kind": "save", "guest": 1, "monitor": []}\n',
        "save-kind.jsonl": b'{"step": "begin", "kind": ["save"], "uuid": {}}\n',
        "restore-image.jsonl": b'{"step": "begin", "kind": "restore", "image": 7, "guest": null}\n',
        "around-what.jsonl": b'{"step": "begin", "kind": "around", "of": 3}\n',
        "around-rot.v2.jsonl": b"\xff\xff\n",
        "save-long.v2.jsonl": b"y" * (6 << 20),
        "save-utf.v2.jsonl": b'{"step": "\xff\xfe"}\n',
    }
    for name, text in texts.items():
        (directory / name).write_bytes(text)
    (directory / "save-directory.v2.jsonl").mkdir()
    os.mkfifo(directory / "save-fifo.v2.jsonl")


def test_bad_journals_keep_no_guest_from_being_recovered(site: cli.Site, guest: qemu.Qemu) -> None:
    struck.run(site, "after", "migrate", "KILL", *SAVE)
    _bad_journals(site.state / "journal")
    done = site.run("recover", "--json", check=3).json()
    (good,) = [each for each in done["operations"] if each["guest"] == NAME]
    assert (good["outcome"], good["error"]) == ("save rolled back", None)
    assert guest.status() == "running"
    failed = [each for each in done["operations"] if each["error"]]
    assert {each["error"]["exit_code"] for each in failed} == {2, 3}
    # Those that can be read, and may be another version's, stay as they are.
    left = {path.name for path in struck.journals(site)}
    assert {"save-keys.jsonl", "save-types.jsonl", "restore-image.jsonl"} <= left
    assert {"save-nested.jsonl.damaged", "save-directory.v2.jsonl.damaged"} <= left


def test_a_journal_that_the_disk_does_not_give(site: cli.Site, guest: qemu.Qemu) -> None:
    """What it was about is known from the partial image."""
    struck.run(site, "after", "complete", "KILL", *SAVE)
    rule = inject.Rule("read", "errno", 5, path="/journal/save-", count=-1)
    result = site.run("recover", "--json", env=inject.environment(rule), check=0)
    (line,) = result.json()["operations"]
    assert line["outcome"] == "image committed"
    guest.wait()
    _kept(site)


def test_a_journal_without_checksums_is_read(site: cli.Site, guest: qemu.Qemu) -> None:
    """One of an earlier version, which began the save before mapsave was replaced."""
    struck.run(site, "after", "complete", "KILL", *SAVE)
    (journal,) = struck.journals(site)
    known: dict[str, Any] = {}
    _as_earlier(journal, known)
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert (line["outcome"], line["warnings"]) == ("image committed", [])
    guest.wait()
    assert not struck.journals(site)


def _as_earlier(journal: Path, known: dict[str, Any]) -> None:
    import json

    lines = []
    for text in journal.read_text().splitlines():
        record = json.loads(text)
        new = {key: record[key] for key in record if key not in (*known, "sum", "steps")}
        known |= {key: record[key] for key in new if key not in ("step", "time")}
        lines.append(json.dumps(new) + "\n")
    journal.with_name(journal.name.replace(".v2", "")).write_text("".join(lines))
    journal.unlink()
