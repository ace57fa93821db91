"""Taps with nothing behind them, for guests whose own have headers of virtio-net.

Such a guest is loaded only beside a backend that has these headers as well ("saved image requires
vnet_hdr=on", 10.0, ``hw/net/virtio-net.c``), and of those only a tap needs no other process. These
are made in a network namespace of their own, which has no other interface and goes with them.
"""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mapsave import errors
from mapsave.image import descriptors, syscalls

_TUN = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_IFREQ = struct.Struct("16sH22x")
_LIMIT = 10.0  # seconds


class Taps:
    """Makes taps; their descriptors have numbers that a QEMU may inherit them by."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.descriptors: list[int] = []

    def make(self, queues: int) -> list[int]:
        """Return the descriptors of a new tap, one for each queue. Blocks. Raises NotProvable."""
        made: list[int] = []
        failed: list[OSError] = []

        def work() -> None:
            try:
                _make(queues, made)
            except OSError as error:
                failed.append(error)

        # The namespace is of a thread, which ends with this.
        thread = threading.Thread(target=work, name="taps", daemon=True)
        thread.start()
        thread.join(_LIMIT)
        if thread.is_alive():
            failed.append(OSError(errno.ETIMEDOUT, "the kernel does not answer"))
        found = []
        for fd in tuple(made):
            with descriptors.closing(fd):
                found.append(self._stack.enter_context(descriptors.inherited(fd)))
        if failed:
            raise errors.NotProvable(
                "the image cannot be proven: the guest has a tap, and none could be made for the "
                f"proof: {failed[0].strerror}",
                hint="run it as root, or with the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN",
            )
        self.descriptors += found
        return found


@contextmanager
def taps() -> Iterator[Taps]:
    """Yield what makes taps; they are gone at the end, once no QEMU has them."""
    with ExitStack() as stack:
        yield Taps(stack)


def _make(queues: int, made: list[int]) -> None:
    """Make a tap in a namespace of this thread, and add its descriptors. Raises OSError."""
    syscalls.leave_network()
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    for _ in range(queues):
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        made.append(fd)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(b"tap", flags))
