"""What is done at an image for the QEMU that it is proven by: it gets it to read, and labelled."""

import contextlib
import os
from collections.abc import AsyncIterator

from mapsave.config import Config
from mapsave.image.image import Image
from mapsave.labels.label import Label, Target
from mapsave.labels.policy import Policy
from mapsave.operations import answering, instant, journal, restore_labels, save_request, turns
from mapsave.operations.begun import RestoreBegun
from mapsave.proof import confinement


def reopened(fd: int) -> int:
    """Return a descriptor of the image for reading only: QEMU is to inherit no other. Blocks."""
    return os.open(f"{instant.PATH}{fd}", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.asynccontextmanager
async def labelled(
    config: Config, policy: Policy, opened: Image, guest: str, kept: confinement.Kept
) -> AsyncIterator[None]:
    """Label the image for a QEMU that is confined by SELinux, while it starts.

    Raises NotProvable, LabelRefused and its kin, Busy.
    """
    directory = os.path.dirname(opened.path)
    async with contextlib.AsyncExitStack() as stack:
        if kept.context is not None:
            expected = Label("selinux", None, kept.context)
            target = Target(opened.fd, opened.path, (), None, "restore", expected)
            labels = save_request.policy_labelling(policy)
            if await answering.within(directory, labels.intended, target) is not None:
                turn = turns.taken(config.state, "label", opened.block.uuid)
                await stack.enter_async_context(turn)
                begun = RestoreBegun(guest=guest, image=opened.path)
                journalled = journal.operation(config.state, "prove", begun)
                log = await stack.enter_async_context(journalled)
                await stack.enter_async_context(restore_labels.applied(labels, target, log))
            await answering.within(directory, confinement.check_image, kept, opened.fd, opened.path)
        yield
