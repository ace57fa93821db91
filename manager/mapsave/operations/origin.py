"""Where an image may come from, and what its restore would run: for those who look at it first."""

from typing import TypedDict

from mapsave import errors
from mapsave.config import Config
from mapsave.image.image import Image
from mapsave.operations import save_request, trust


class Origin(TypedDict):
    """Who else could have written an image, what it would run, and warnings of both.

    ``names`` are programs, paths and devices of the host: of the domain XML, or the program of the
    recorded command, which is run with ``--trust-recorded-command`` alone.
    """

    writable_by: list[str]
    names: list[dict[str, str]]
    warnings: list[str]


def describe(opened: Image, config: Config | None = None) -> Origin:
    """Return that; by ``config`` the policy of its guest may give images to another user."""
    strangers = trust.strangers(opened, _trusted(opened, config))
    warnings = [f"others could have written the image: {each}" for each in strangers]
    names = []
    try:
        names = _names(opened)
    except errors.InvalidImage as error:
        warnings.append(error.message)
    warnings += opened.warnings
    return {"writable_by": strangers, "names": names, "warnings": warnings}


def _trusted(opened: Image, config: Config | None) -> frozenset[int]:
    if config is None:
        return trust.users()
    name = str(opened.metadata.get("guest", {}).get("name"))
    try:
        return trust.users(save_request.policy_of(config, config.named(name)))
    except errors.MapsaveError:
        return trust.users()  # a restore says what is wrong with the policy


def _names(opened: Image) -> list[dict[str, str]]:
    """Return what the image makes a host run, open and use. Raises InvalidImage."""
    xml = domain_xml(opened)
    if xml is not None:
        from mapsave import domain_resources

        return [{"kind": each.kind, "name": each.name} for each in domain_resources.of_xml(xml)]
    argv = (opened.metadata.get("command") or {}).get("argv")
    return [{"kind": "program", "name": argv[0]}] if argv else []


def domain_xml(opened: Image) -> str | None:
    """Return the domain XML of an image, passwords included; None where it has none."""
    if opened.libvirt is not None:
        return opened.libvirt.xml
    return (opened.metadata.get("domain") or {}).get("xml")
