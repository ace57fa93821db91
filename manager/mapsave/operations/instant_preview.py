"""What an instant restore of an image would do, before it is begun."""

import dataclasses
from typing import TypedDict

from mapsave import errors
from mapsave.config import Config
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.operations import bounds, destination_choice, instant
from mapsave.operations.restore_request import Request


class Instant(TypedDict):
    """Whether RAM can be mapped from an image, and if not, why.

    ``is_used``: whether a restore does so by the configuration.
    """

    is_possible: bool
    is_used: bool
    why_not: list[str]


def of(config: Config, opened: Image, contents: Contents) -> Instant:
    """Return that for a restore of the image as the guest it is of. Blocks."""
    name = bounds.owner(opened.metadata) or "guest"
    request = Request(opened.path, trust_image=True)
    settings = request.settings(config, name)
    asked = destination_choice.Asked(
        config=config,
        request=request,
        settings=settings,
        opened=opened,
        contents=contents,
        name=name,
    )
    is_by_command = destination_choice.is_by_command(asked)
    # A recorded command is looked at, not run.
    with_recorded = dataclasses.replace(request, trust_recorded_command=True)
    asked = dataclasses.replace(asked, request=with_recorded)
    try:
        if is_by_command:
            command = destination_choice.command_of(asked)
            decision = instant.decide("auto", command, opened, contents)
        else:
            from mapsave.operations import instant_libvirt  # which loads an XML parser

            xml, uri = destination_choice.domain_of(asked)
            decision = instant_libvirt.possible("auto", xml, uri, opened, contents)
        reasons = list(decision.why_not)
    except errors.MapsaveError as error:
        reasons = [error.message]
    is_wanted = settings.instant == "on" or (settings.instant == "auto" and is_by_command)
    return {"is_possible": not reasons, "is_used": not reasons and is_wanted, "why_not": reasons}
