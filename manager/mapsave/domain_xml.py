"""Pure functions on libvirt's domain XML (https://libvirt.org/formatdomain.html)."""

import dataclasses
import uuid as uuids

from mapsave import errors, units

# libvirt's RPC carries no longer string (REMOTE_STRING_MAX of remote_protocol.x), so no domain has
# more; and a parser may take thirty times the bytes of XML made to hurt.
MAX_CHARACTERS = 4 * units.MIB
MAX_DEPTH = 256  # libxml2, with which libvirt reads it, goes no deeper (xmlParserMaxDepth)
_CHUNK = 64 * units.KIB


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a domain is: its name, and its uuid in lower case with dashes."""

    name: str
    uuid: str


class _Finder:
    """A parser's target that keeps nothing but the texts of /domain/name and /domain/uuid."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._texts: dict[str, str] = {}

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        if len(self._path) >= MAX_DEPTH:
            raise errors.InvalidImage(f"the domain XML is nested deeper than {MAX_DEPTH} elements")
        if not self._path and tag != "domain":
            raise errors.InvalidImage(f"the domain XML describes a {tag[:40]!r}, not a 'domain'")
        self._path.append(tag)

    def end(self, _tag: str) -> None:
        self._path.pop()

    def data(self, text: str) -> None:
        if self._path[1:] in (["name"], ["uuid"]):
            tag = self._path[-1]
            self._texts[tag] = self._texts.get(tag, "") + text

    def close(self) -> dict[str, str]:
        return self._texts


def identity(xml: str) -> Identity:
    """Return name and uuid of the domain that ``xml`` describes.

    Takes hostile input: time and memory are bounded by the length of ``xml``. Raises InvalidImage
    where it is no domain XML, too long, or lacks one of the two.
    """
    from xml.etree import ElementTree  # slow to import, and native images hold no XML

    if len(xml) > MAX_CHARACTERS:
        raise errors.InvalidImage(
            f"the domain XML has {len(xml)} characters; libvirt itself accepts {MAX_CHARACTERS}"
        )
    if "<!DOCTYPE" in xml:  # entities may grow without bound; libvirt never writes one
        raise errors.InvalidImage("the domain XML has a document type declaration")
    # No document type, hence no entities: what S314 warns of cannot be in it.
    parser = ElementTree.XMLParser(target=_Finder())  # noqa: S314
    try:
        for at in range(0, len(xml), _CHUNK):
            parser.feed(xml[at : at + _CHUNK])
        texts = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise errors.InvalidImage(f"the domain XML is not XML: {error}") from None
    name = texts.get("name", "")
    if not name:
        raise errors.InvalidImage("the domain XML names no domain")
    try:
        return Identity(name, str(uuids.UUID(texts.get("uuid", "").strip())))
    except ValueError:
        raise errors.InvalidImage("the domain XML has no valid uuid") from None
