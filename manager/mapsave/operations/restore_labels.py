"""Label an image for the QEMU that it is restored into: as it loads, or before it is started.

A QEMU that maps its RAM from the image opens it as it starts, when nothing can be asked about its
context yet. It is expected in the one that it was saved from, which the image records.
"""

import contextlib
import logging
import os
from collections.abc import AsyncIterator

import msgspec

from mapsave import shielded, typed
from mapsave.image.image import Image
from mapsave.labels import labelling
from mapsave.labels.label import Label, Problem, Target
from mapsave.labels.policy import Policy
from mapsave.operations import answering, save_request, turns
from mapsave.operations.journal import Journal
from mapsave.operations.steps import Step

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def applied(
    labels: labelling.Labelling, target: Target, log: Journal
) -> AsyncIterator[list[Problem]]:
    """Label the image for QEMU to read, and take that back; both are journalled before.

    What cannot be taken back is yielded, for ``mapsave recover``. Raises LabelRefused and its kin.
    """
    left: list[Problem] = []

    def on_left(problems: list[Problem]) -> None:
        left.extend(problems)
        log.unsettled()

    directory, file = os.path.split(os.path.realpath(target.path))
    await answering.within(directory, labels.check, directory, target.pid, "restore", [file])
    if (intended := await answering.within(directory, labels.intended, target)) is not None:
        await log.step(Step.LABEL, label=intended)
    async with shielded.entered(labels.applied(target, on_left), lambda _: log.unsettled()):
        yield left


@contextlib.asynccontextmanager
async def before_start(policy: Policy, opened: Image, log: Journal) -> AsyncIterator[None]:
    """Label the image for a QEMU that is to be started in this context.

    Clones of one image take turns: the first to end would take the label from the others. Does
    nothing where the image records no context. Raises LabelRefused and its kin, Busy.
    """
    async with before(policy, opened, log, _recorded(opened)):
        yield


@contextlib.asynccontextmanager
async def before(
    policy: Policy, opened: Image, log: Journal, expected: Label | None
) -> AsyncIterator[None]:
    """Do as ``before_start`` for a QEMU in the contexts of ``expected``; None: for none."""
    if expected is None:
        yield
        return
    target = Target(opened.fd, opened.path, (), None, "restore", expected)
    async with (
        turns.taken(log.state, "label", opened.block.uuid),
        applied(save_request.policy_labelling(policy), target, log) as left,
    ):
        yield
    log.warnings += [problem.text for problem in left]


def give(policy: Policy, opened: Image, fd: int, path: str) -> None:
    """Label an open file that becomes the RAM of a QEMU that is to be started in this context.

    Does nothing where the image records none. Blocks. Raises LabelRefused and its kin.
    """
    if (expected := _recorded(opened)) is not None:
        save_request.policy_labelling(policy).give(fd, path, expected)


def _recorded(opened: Image) -> Label | None:
    """Return the label that the image had while it was saved, if QEMU was confined then."""
    try:
        label = typed.convert(opened.metadata.get("label"), Label)
    except msgspec.ValidationError:
        return None
    return label if any(part.process for part in label.parts()) else None


def contexts(opened: Image) -> dict[str, str]:
    """Return the contexts of the QEMU that an image was saved from, by the security module."""
    label = _recorded(opened)
    parts = label.parts() if label is not None else ()
    return {part.module: part.process for part in parts if part.process is not None}
