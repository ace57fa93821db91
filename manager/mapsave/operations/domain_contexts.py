"""In which contexts of security modules libvirt starts a domain's QEMU, as far as that is known.

A label that the domain's definition names counts, else the one that its QEMU had when it was saved:
one that libvirt chooses itself has other categories each time. Of a domain that was never seen it
is one of the kind that libvirt would choose.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping

from msgspec import structs

from mapsave.image.image import Image
from mapsave.labels.label import Label
from mapsave.labels.policy import BUILT_IN, Policy
from mapsave.labels.selinux import Selinux
from mapsave.labels.system import System
from mapsave.monitor import definition, libvirt_connection
from mapsave.operations import restore_labels
from mapsave.operations.journal import Journal
from mapsave.proof import confinement


async def of(xml: str, uri: str, opened: Image) -> Mapping[str, str]:
    """Return the contexts by the module, of those that libvirt confines guests by.

    Raises Unreachable, InvalidImage.
    """
    told = await libvirt_connection.capabilities(uri)
    recorded = restore_labels.contexts(opened)
    chosen = {**confinement.default_contexts(), **recorded}
    found = {}
    for module in definition.security_models(told):
        kind, label = definition.seclabel(xml, module)
        context = label or chosen.get(module)
        if kind != "none" and context is not None:
            found[module] = context
    return found


@contextlib.asynccontextmanager
async def labelled(
    policy: Policy, opened: Image, log: Journal, xml: str, uri: str
) -> AsyncIterator[None]:
    """Do as ``restore_labels.before_start`` for a domain that libvirt is to start from ``xml``.

    Which categories its QEMU gets is not known before that, unless the definition names them. So
    the image gets a label that every guest of libvirt may read, and none may write.
    """
    context = (await of(xml, uri, opened)).get("selinux")
    if context is not None and policy.module in ("auto", "selinux"):
        label = Selinux(BUILT_IN["auto"], System()).shared_label()
        if policy.selinux.label is None and not _has_own(xml) and label is not None:
            policy = structs.replace(policy, selinux=structs.replace(policy.selinux, label=label))
    expected = Label("selinux", None, context) if context is not None else None
    async with restore_labels.before(policy, opened, log, expected):
        yield


def _has_own(xml: str) -> bool:
    """Return whether the definition names the context of SELinux, which then is always the same."""
    return definition.seclabel(xml, "selinux")[1] is not None
