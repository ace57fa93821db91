"""Build images in libvirt format from its description, without mapsave's own code.

``LibvirtImage()`` is a small good image as mapsave saves it; with ``ours=False`` as virsh does.
Fields of the header are named ``lv.…``; they are in this host's byte order.
"""

import struct
from dataclasses import dataclass

from tests.image import build

SAVE, PART = b"LibvirtQemudSave", b"LibvirtQemudPart"
NAME = "web 01 <é>"
UUID = "9d4fe0f4-0e4b-4a5f-8d2b-6a4c8f1d2e30"
XML = f"""<domain type='kvm'>
  <name>web 01 &lt;é&gt;</name>
  <uuid>{UUID}</uuid>
  <devices><disk><name>not this</name></disk></devices>
</domain>
""".encode()
COOKIE = b"<cookie><slirpHelper/></cookie>"
HEADER = 92
VIRSH_OFFSET = 0x10488 + len(XML) + len(COOKIE)  # of no alignment, as virsh makes it


def header(
    *,
    magic: bytes = SAVE,
    version: int = 2,
    data_length: int = build.M - HEADER,
    was_running: int = 1,
    number: int = 6,
    cookie_offset: int = 0,
    unused: bytes = bytes(56),
) -> bytes:
    numbers = struct.pack("=IIIII", version, data_length, was_running, number, cookie_offset)
    return magic + numbers + unused


@dataclass
class LibvirtImage(build.Image):
    """The parts of an image in libvirt format; ``built()`` lays them out."""

    magic: bytes = SAVE
    version: int = 2
    was_running: int = 1
    number: int = 6
    xml: bytes = XML
    cookie: bytes | None = COOKIE
    ours: bool = True
    data_length: int | None = None
    cookie_offset: int | None = None

    def built(self) -> build.Built:
        """Return the image laid out, with the fields of libvirt's header."""
        built = super().built()
        at = 0
        lengths = {"magic": 16, "version": 4, "data_length": 4, "was_running": 4, "format": 4}
        lengths |= {"cookie_offset": 4, "unused": 56, "xml": len(self.xml), "xml.nul": 1}
        if self.cookie is not None:
            lengths |= {"cookie": len(self.cookie), "cookie.nul": 1}
        for name, length in lengths.items():
            built.fields[f"lv.{name}"] = (at, length)
            at += length
        if self.ours:
            built.fields["lv.slot0"] = (self.offset - 2 * build.SLOT, build.SLOT)
            built.fields["lv.slot1"] = (self.offset - build.SLOT, build.SLOT)
        built.fields["lv.padding"] = (at, self.offset - at)
        return built

    def _native(self, size: int) -> list[tuple[int, bytes]]:
        texts = self.xml + b"\0" + (b"" if self.cookie is None else self.cookie + b"\0")
        computed = 0 if self.cookie is None else len(self.xml) + 1
        head = header(
            magic=self.magic,
            version=self.version,
            was_running=self.was_running,
            number=self.number,
            data_length=self.offset - HEADER if self.data_length is None else self.data_length,
            cookie_offset=computed if self.cookie_offset is None else self.cookie_offset,
        )
        pieces = [(0, head + texts)]
        if self.ours:
            start = -(-(HEADER + len(texts)) // build.SLOT) * build.SLOT
            options = {
                "metadata": self.metadata,
                "metadata_offset": start,
                "stream_offset": self.offset,
                "file_length": size,
                **self.header,
            }
            pieces += [
                (start, self.metadata),
                (self.offset - 2 * build.SLOT, build.slot(**options)),
                (self.offset - build.SLOT, build.slot(**{"sequence": 3, **options})),
            ]
        return pieces


def of_virsh(**parts: object) -> LibvirtImage:
    """Return an image as virsh saves it: no slots, the stream anywhere."""
    return LibvirtImage(**{"ours": False, "offset": VIRSH_OFFSET, **parts})  # type: ignore[arg-type]
