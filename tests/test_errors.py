"""Errors: the ids and exit codes that scripts rely on, and the table in the documentation."""

import collections
import json
import subprocess
import sys

import pytest
from mapsave import error_table, errors

from tests.kit import tree

# What was released once stays: add lines here, never change one.
EXIT_CODES = {
    "internal": 1,
    "monitor.broken": 1,
    "monitor.command": 1,
    "monitor.failed": 1,
    "monitor.lost": 1,
    "monitor.timeout": 1,
    "output.failed": 1,
    "service.lost": 1,
    "monitor.kept": 1,
    "monitor.migrating": 1,
    "config.invalid": 2,
    "config.missing": 2,
    "guest.unknown": 2,
    "image.not_found": 2,
    "job.unknown": 2,
    "operation.unknown": 2,
    "policy.unknown": 2,
    "request.invalid": 2,
    "request.method": 2,
    "request.not_found": 2,
    "request.too_large": 2,
    "fleet.host_unknown": 2,
    "fleet.run_unknown": 2,
    "unsupported": 2,
    "usage": 2,
    "check.already_restored": 3,
    "check.capability": 3,
    "check.deadline": 3,
    "check.destination": 3,
    "check.destination_not_zero": 3,
    "check.checkpoint": 3,
    "check.pause": 3,
    "check.direct_io": 3,
    "check.directory": 3,
    "check.guest_saved": 3,
    "check.image_exists": 3,
    "check.limits": 3,
    "check.mode": 3,
    "check.no_descriptors": 3,
    "check.no_destination": 3,
    "check.not_migratable": 3,
    "check.not_provable": 3,
    "check.instant": 3,
    "image.not_digested": 3,
    "export.failed": 3,
    "import.failed": 3,
    "check.older_qemu": 3,
    "check.refused": 3,
    "check.room": 3,
    "check.run_state": 3,
    "check.too_old": 3,
    "check.unreachable": 3,
    "core.failed": 3,
    "hook.refused": 3,
    "recover.journal": 3,
    "recover.journal_lost": 3,
    "service.unreachable": 3,
    "fleet.schema": 3,
    "fleet.task": 3,
    "fleet.unreachable": 3,
    "fleet.window": 3,
    "fleet.no_scheduler": 3,
    "check.kept_by_qemu": 3,
    "proof.failed": 4,
    "proof.pages": 4,
    "proof.stalled": 4,
    "save.commit": 4,
    "save.failed": 4,
    "save.guest_continued": 4,
    "save.guest_not_ended": 4,
    "save.guest_not_put_back": 4,
    "save.qemu_died": 4,
    "save.timeout": 4,
    "save.kept_by_qemu": 4,
    "save.stalled": 4,
    "restore.failed": 5,
    "restore.launch": 5,
    "restore.stalled": 5,
    "restore.timeout": 5,
    "image.corrupt": 6,
    "image.data_damaged": 6,
    "image.digests_damaged": 6,
    "image.empty_ram": 6,
    "image.metadata_lost": 6,
    "image.pages_missing": 6,
    "image.not_an_image": 6,
    "image.partial": 6,
    "image.truncated": 6,
    "image.unsupported": 6,
    "image.unreadable": 6,
    "archive.damaged": 6,
    "directory.untrusted": 7,
    "image.foreign_resource": 7,
    "image.untrusted": 7,
    "archive.not_decrypted": 7,
    "label.refused": 7,
    "label.unavailable": 7,
    "permission.denied": 7,
    "permission.role": 7,
    "fleet.denied": 7,
    "fleet.forbidden": 7,
    "policy.violation": 7,
    "fleet.agent_running": 8,
    "guest.busy": 8,
    "fleet.not_leading": 8,
    "image.in_use": 8,
    "guest.migrating": 8,
    "operation.not_cancellable": 8,
    "service.busy": 8,
    "service.running": 8,
    "service.stopping": 8,
    "fleet.outcome_unknown": 9,
    "interrupted": 9,
}


def catalogue() -> list[type[errors.MapsaveError]]:
    """Return the errors of the manager, without what a test may have derived from them."""
    return [cls for cls in error_table.catalogue() if cls.__module__.startswith("mapsave.")]


def test_ids_and_exit_codes_are_what_scripts_rely_on() -> None:
    assert {cls.id: cls.exit_code for cls in catalogue()} == EXIT_CODES


def test_each_class_has_an_id_of_its_own() -> None:
    counted = collections.Counter(cls.id for cls in catalogue())
    assert [each for each, count in counted.items() if count > 1] == []
    assert all("id" in vars(cls) for cls in catalogue())


@pytest.mark.parametrize("cls", catalogue(), ids=lambda cls: cls.id)
def test_error_fits_its_family(cls: type[errors.MapsaveError]) -> None:
    (parent,) = cls.__bases__
    if parent is not Exception and parent is not errors.MapsaveError:
        assert cls.exit_code == parent.exit_code
    assert 1 <= cls.exit_code <= 9
    assert 400 <= cls.http_status <= 599
    assert (cls.http_status == 500) <= (cls.exit_code in (1, 4, 5))
    meaning = cls.__doc__ or ""
    assert meaning.strip().endswith(".")
    assert "|" not in meaning


def test_every_exit_code_of_the_contract_has_an_error() -> None:
    assert {cls.exit_code for cls in catalogue()} == set(range(1, 10))


def test_error_as_json() -> None:
    error = errors.NoRoom("no room in /images", hint="free some", needed=5)
    assert json.loads(json.dumps(error.as_dict())) == {
        "id": "check.room",
        "exit_code": 3,
        "message": "no room in /images",
        "hint": "free some",
        "data": {"needed": 5},
    }
    assert str(error) == error.message


@pytest.mark.parametrize("cls", catalogue(), ids=lambda cls: cls.id)
def test_error_comes_back_from_what_was_told_of_it(cls: type[errors.MapsaveError]) -> None:
    made = cls("migrate", "GenericError", "no") if cls is errors.CommandRefused else cls("words")
    found = errors.from_dict(json.loads(json.dumps({**made.as_dict(), "hint": "do"})))
    assert type(found) is cls
    assert (found.message, found.hint, found.data) == (made.message, "do", made.data)


def test_error_of_another_version_comes_back_as_one_of_no_kind() -> None:
    found = errors.from_dict({"id": "of.the.future", "message": "words"})
    assert (type(found), found.message, found.hint) == (errors.MapsaveError, "words", None)


def test_refused_command_says_whose_refusal_it_is() -> None:
    error = errors.CommandRefused("qom-get", "libvirt", "domain is not running", by="libvirt")
    assert error.message == "libvirt refused qom-get: domain is not running"


def test_refused_command_quotes_qemu() -> None:
    error = errors.CommandRefused("migrate", "GenericError", "no such thing")
    assert error.message == "QEMU refused migrate: no such thing"
    assert (error.command, error.error_class, error.desc) == (
        *("migrate", "GenericError", "no such thing"),
    )


def test_documentation_is_what_the_code_says() -> None:
    """After a change: ``python -m mapsave.error_table > docs/errors.md``."""
    printed = subprocess.run(
        [sys.executable, "-m", "mapsave.error_table"], cwd=tree.ROOT, capture_output=True, text=True
    )
    assert printed.stderr == ""
    assert (tree.ROOT / "docs/errors.md").read_text() == printed.stdout
