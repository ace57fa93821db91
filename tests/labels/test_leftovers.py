"""What a mapsave that died has left labelled is set for rest or put back, from its journal."""

import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mapsave.labels import labelling, recovery
from mapsave.labels.label import Label, Target
from mapsave.labels.modules import SELINUX_ENFORCE
from mapsave.labels.policy import Policy, SelinuxOptions, SmackOptions

from tests.labels.conftest import BORN, IMAGE, PID, Host, labelled

ATTRIBUTES = {"selinux": "security.selinux", "smack": "security.SMACK64"}
BEFORE = {"selinux": BORN, "smack": "System"}
OTHER = "system_u:object_r:rest_t:s0"


def journalled(label: Label | None) -> Label:
    """Return a label as it is after the journal."""
    assert label is not None
    return msgspec.convert(json.loads(json.dumps(label.as_dict())), Label)


def now(host: Host, image: Path, module: str) -> str:
    return (host.of(image, ATTRIBUTES[module]) or "").rstrip("\0")


def saved(host: Host, image: Path, policy: Policy) -> Label:
    """Label the image for a save that dies; return what its journal says."""
    with labelled(labelling.Labelling(policy, host), image) as applied:
        applied.keep()
    return journalled(applied.label)


def restoring(host: Host, image: Path, policy: Policy, *, dies: bool = True) -> Label:
    """Label the image for a restore that dies; return what it had journalled before."""
    labeller = labelling.Labelling(policy, host)
    with open(image, "rb") as file:
        label = labeller.intended(Target(file.fileno(), str(image), (), PID, "restore"))
    with labelled(labeller, image, access="restore") as applied:
        if dies:
            applied.keep()
    return journalled(label)


def settled(host: Host, image: Path, label: Label) -> list[labelling.Problem]:
    with open(image, "rb") as file:
        return recovery.settle(file.fileno(), str(image), label, host)


def put_back(host: Host, image: Path, label: Label) -> list[labelling.Problem]:
    with open(image, "rb") as file:
        return recovery.put_back(file.fileno(), str(image), label, host)


@pytest.mark.parametrize(
    ("at_rest", "expected"), [("default", BORN), ("keep", IMAGE), (OTHER, OTHER)]
)
def test_saved_image_gets_the_label_for_rest_of_the_journal(
    selinux: Host, image: Path, at_rest: str, expected: str
) -> None:
    """Its policy is not asked for: it may be another by now, or gone."""
    policy = Policy("selinux", name="mine", mode=0o640, selinux=SelinuxOptions(at_rest=at_rest))
    label = saved(selinux, image, policy)
    assert (label.value, label.previous) == (IMAGE, BORN)
    image.chmod(0o666)
    assert settled(selinux, image, label) == []
    assert now(selinux, image, "selinux") == expected
    assert image.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("at_rest", "expected"), [("previous", "System"), ("Vault", "Vault")])
def test_saved_image_gets_the_label_of_smack_for_rest(
    smack: Host, image: Path, at_rest: str, expected: str
) -> None:
    label = saved(smack, image, Policy("smack", name="mine", smack=SmackOptions(at_rest=at_rest)))
    assert now(smack, image, "smack") == "Guest1"
    assert settled(smack, image, label) == []
    assert now(smack, image, "smack") == expected


def test_module_that_is_not_active_any_more(selinux: Host, image: Path) -> None:
    """The host was booted without SELinux: nothing is written, and what stays is said."""
    label = saved(selinux, image, Policy("selinux", name="mine", mode=0o640))
    selinux.locate(SELINUX_ENFORCE).unlink()
    image.chmod(0o666)
    (problem,) = settled(selinux, image, label)
    assert problem.text.startswith(f"selinux is no longer active: {image} keeps the label {IMAGE}")
    assert not problem.recoverable
    assert now(selinux, image, "selinux") == IMAGE
    assert image.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("module", ["selinux", "smack"])
def test_restored_image_gets_its_label_back(
    request: pytest.FixtureRequest, image: Path, module: Any
) -> None:
    host: Host = request.getfixturevalue(module)
    label = restoring(host, image, Policy(module, name="mine"))
    assert now(host, image, module) == label.value != BEFORE[module]
    assert put_back(host, image, label) == []
    assert now(host, image, module) == BEFORE[module]


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_died_before_the_label_was_set_or_behind_its_end(
    selinux: Host, image: Path, moment: str
) -> None:
    label = restoring(selinux, image, Policy("selinux", name="mine"), dies=False)
    if moment == "behind":
        selinux.label(image, ATTRIBUTES["selinux"], OTHER)
    assert put_back(selinux, image, label) == []
    assert now(selinux, image, "selinux") == (OTHER if moment == "behind" else BORN)


def test_label_that_cannot_be_put_back_can_be_later(selinux: Host, image: Path) -> None:
    label = restoring(selinux, image, Policy("selinux", name="mine"))
    selinux.failures["set"] = errno.EPERM
    (problem,) = put_back(selinux, image, label)
    assert problem.recoverable
    assert "Operation not permitted (run 'mapsave recover')" in problem.text
    selinux.failures.clear()
    assert put_back(selinux, image, label) == []
    assert now(selinux, image, "selinux") == BORN


def test_nothing_is_journalled_that_goes_by_itself(selinux: Host, image: Path) -> None:
    """A partial image goes with its label; and one that QEMU may read keeps its own."""
    labeller = labelling.Labelling(Policy("selinux", name="mine", mode=0o640), selinux)
    with open(image, "rb") as file:
        assert labeller.intended(Target(file.fileno(), str(image), (), PID, "save")) is None
        selinux.label(image, ATTRIBUTES["selinux"], IMAGE)
        assert labeller.intended(Target(file.fileno(), str(image), (), PID, "restore")) is None
