"""Images that are exported and imported, without the disk where that can be."""

import io
import os
from pathlib import Path

from mapsave.archive import coding, keys, libraries, reading, sparse_tar, writing
from mapsave.archive.coding import Coding
from mapsave.config import Config
from mapsave.image import data_digests, image
from mapsave.image.libvirt_header import NewLibvirtHeader

from tests.image import build, filled
from tests.image.build_libvirt import COOKIE, XML
from tests.kit import files

NEW = NewLibvirtHeader(XML.decode(), COOKIE.decode(), was_running=True)
FORMATS = {"native": None, "libvirt": NEW}
PLAIN = Coding(level=None)


def nothing(_: int) -> None:
    pass


def config(directory: Path) -> Config:
    (directory / "images").mkdir(exist_ok=True)
    return Config(images=directory / "images", state=directory / "state")


def made(
    directory: Path,
    name: str = "web.mapsave",
    *,
    header: NewLibvirtHeader | None = None,
    digests: bool = True,
) -> Path:
    """Make an image of a few MiB with random pages, in the image directory."""
    room = data_digests.room(8 * build.MIB) if digests else 0
    metadata = {"guest": {"name": "web01"}}
    with (
        files.opened(config(directory).images, os.O_DIRECTORY) as held,
        image.creating(
            held, name, metadata, stream_offset=build.M, libvirt=header, digest_room=room
        ) as partial,
    ):
        filled.fill(partial, 1)
        found = partial.validate().structure_digest
        partial.take_digests(nothing)
        partial.commit({**metadata, "structure_digest": found}, replace=False)
    return config(directory).images / name


class Identity:
    """A key pair of age."""

    def __init__(self, directory: Path) -> None:
        age = libraries.age()
        secret = age.x25519.Identity.generate()
        self.recipient = str(secret.to_public())
        self.file = directory / "identity"
        self.file.write_text(f"# a comment\n\n{secret}\n")
        self.identities = keys.identities((str(self.file),))
        self.recipients = keys.recipients((self.recipient,), ())


def packed(fd: int, coded: Coding = PLAIN, name: str = "web.mapsave") -> bytes:
    """Return the archive of any file."""
    size = os.fstat(fd).st_size
    source = writing.Image(
        fd=fd, name=name, size=size, modified=1, header=0, known=None, check=lambda: None
    )
    out = io.BytesIO()
    with coding.encoding(out, coded) as sink:
        writing.write(source, sparse_tar.layout(fd, size, nothing), sink, nothing)
    return out.getvalue()


def unpacked(raw: bytes, fd: int, identities: tuple[keys.Identity, ...] = ()) -> sparse_tar.Head:
    """Read an archive into an empty file, which gets its last byte only if all is well."""
    with files.in_memory() as archive:
        os.write(archive, raw)
        os.lseek(archive, 0, os.SEEK_SET)
        with (
            open(archive, "rb", buffering=0, closefd=False) as source,
            coding.decoding(source, identities) as read,
            files.opened("/tmp", os.O_DIRECTORY) as directory,
        ):
            head = sparse_tar.read_head(read.exactly)
            reading.receive(read, head, fd, directory, nothing).complete()
            return head


def contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
