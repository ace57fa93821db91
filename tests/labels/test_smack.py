import errno
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.labels import labelling
from mapsave.labels.policy import Policy, SmackOptions

from tests.labels.conftest import PID, Host, labelled

ATTRIBUTE = "security.SMACK64"


def work(host: Host, **options: Any) -> labelling.Labelling:
    return labelling.Labelling(Policy("smack", name="mine", smack=SmackOptions(**options)), host)


def test_image_gets_the_label_of_qemu_and_its_own_back(smack: Host, image: Path) -> None:
    with labelled(work(smack), image) as applied:
        assert smack.of(image, ATTRIBUTE) == "Guest1"
        assert applied.label == labelling.Label(
            "smack", "Guest1", "Guest1", "System", {"at_rest": "previous"}
        )
    assert smack.of(image, ATTRIBUTE) == "System"


def test_label_is_taken_off_where_there_was_none(smack: Host, image: Path) -> None:
    smack.attributes.clear()
    with labelled(work(smack), image):
        assert smack.of(image, ATTRIBUTE) == "Guest1"
    assert smack.of(image, ATTRIBUTE) is None


@pytest.mark.parametrize(
    ("at_rest", "expected"), [("previous", "System"), ("keep", "Guest1"), ("Vault", "Vault")]
)
def test_label_for_rest(smack: Host, image: Path, at_rest: str, expected: str) -> None:
    labeller = work(smack, at_rest=at_rest)
    with labelled(labeller, image) as applied:
        assert applied.at_rest() == []
    assert smack.of(image, ATTRIBUTE) == expected


def test_label_of_the_policy_without_a_rule(smack: Host, image: Path) -> None:
    labeller = work(smack, label="Vault")
    with pytest.raises(errors.LabelRefused) as caught, labelled(labeller, image):
        pytest.fail("not reached")
    assert caught.value.message == (
        f"Smack would refuse {image} to QEMU: its label Guest1 may not write a file labelled "
        "Vault (policy mine requires Vault)"
    )
    assert caught.value.hint == "load the rule: Guest1 Vault rw"
    assert smack.of(image, ATTRIBUTE) == "System"


def test_relabelling_denied(smack: Host, image: Path) -> None:
    smack.failures["set"] = errno.EPERM
    with pytest.raises(errors.LabelRefused) as caught, labelled(work(smack), image):
        pytest.fail("not reached")
    assert caught.value.message == (
        f"Smack does not let mapsave label {image}: it is System, policy mine requires Guest1: "
        "Operation not permitted"
    )
    assert caught.value.hint == "setting a Smack label requires CAP_MAC_ADMIN"


def test_restore_leaves_a_readable_image_alone(smack: Host, image: Path) -> None:
    smack.allowed.add(("Guest1", "System", "r"))
    with labelled(work(smack), image, access="restore") as applied:
        assert applied.label.value == "System"


def test_check(smack: Host, image: Path) -> None:
    label = work(smack).check(str(image.parent), PID, "save")
    assert label == labelling.Label("smack", "Guest1", "Guest1")
    with pytest.raises(errors.LabelRefused, match="may not write a file labelled Vault"):
        work(smack, label="Vault").check(str(image.parent), PID, "save")


def test_qemu_that_is_gone(smack: Host, image: Path) -> None:
    with pytest.raises(errors.Unreachable, match="there is no process 4343"):
        work(smack).check(str(image.parent), 4343, "save")


def test_undo_writes_nothing_that_is_there_already(
    smack: Host, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smack.label(image, ATTRIBUTE, "Guest1")
    smack.failures["set"] = errno.EPERM
    with labelled(work(smack), image) as applied:
        assert applied.label.previous == "Guest1"
    assert caplog.text == ""
