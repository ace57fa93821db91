"""Who may request what: operators work on the guests and images that root has configured."""

from mapsave import errors, key_types
from mapsave.client.requests import Check, Clone, Request, Restore, RestoreAll, Save, SaveAll
from mapsave.config import Config
from mapsave.evacuation import clones
from mapsave.image import image
from mapsave.operations import bounds
from mapsave.service.peers import Peer, Role


def check(peer: Peer, request: Request, config: Config) -> None:
    """Raise RoleMissing where what is requested reaches further than the peer may.

    What is not configured (any socket, any command, any definition) is root's.
    """
    for guest in _guests(request):
        if guest and guest.startswith(key_types.ADDRESSES) and guest not in config.guests:
            peer.require(Role.ADMIN, f"name the guest {guest!r}, which is not configured")
    match request:
        case Save():
            owner = None
            if request.save.replace and request.save.image is not None:
                owner = _guest_of(config, request.save.image)
            if owner not in (None, request.guest):
                peer.require(Role.ADMIN, f"replace an image of another guest, {owner!r}")
        case Restore():
            admins = ("into", "xml", "trust_image", "trust_recorded_command", "without_metadata")
            for field in admins:
                if getattr(request.restore, field):
                    peer.require(Role.ADMIN, f"set {field!r} of a restore")
        case Clone() if request.clone.trust_image:
            peer.require(Role.ADMIN, "set 'trust_image' of a clone")
        case SaveAll() if request.libvirt is not None:
            peer.require(Role.ADMIN, "save domains that are not configured")
        case RestoreAll() if request.discard:
            peer.require(Role.ADMIN, "discard images")
    check_bounds(peer, request, config)


def check_bounds(peer: Peer | None, request: Request, config: Config) -> None:
    """Raise RoleMissing where an operator requests what root has set otherwise."""
    if peer is None or peer.role >= Role.ADMIN:
        return
    match request:
        case Save():
            bounds.check_policy(config, request.guest, request.save.policy)
        case Check() if request.guest is not None and request.check is not None:
            bounds.check_policy(config, request.guest, request.check.policy)
        case Clone():
            try:
                with image.opened(path_of(config, request.image)) as found:
                    owner = bounds.owner(found.metadata)
            except errors.MapsaveError:
                return  # the clone, which checks again, says what is wrong with the image
            template = clones.template_of(config, owner, request.clone.guest)
            bounds.check_template(template, request.image)
        case Restore():
            guest = request.restore.guest
            try:
                with image.opened(path_of(config, request.image)) as found:
                    bounds.check_clone(config, found.metadata, guest, request.image)
                    guest = guest or bounds.owner(found.metadata)
            except errors.RoleMissing:
                raise
            except errors.MapsaveError:
                pass  # the restore, which checks again, says what is wrong with the image
            bounds.check_policy(config, guest, request.restore.policy)


def path_of(config: Config, image: str) -> str:
    """Return the path of an image of the image directory, where no link leads out of it.

    Raises NotPermitted for a symbolic link.
    """
    path = config.images / image
    if path.is_symlink():
        raise errors.NotPermitted(
            f"{str(path)!r} is a symbolic link, which may lead out of the image directory",
            hint="name the image itself, with --local",
        )
    return str(path)


def _guests(request: Request) -> list[str | None]:
    match request:
        case SaveAll():
            return list(request.guests)
        case Restore():
            return [request.restore.guest]
        case Clone():
            return [request.clone.guest, *request.clone.names]
    return [request.guest]


def _guest_of(config: Config, name: str) -> str | None:
    """Return whose image that is; None where there is none, or none that can be read."""
    try:
        with image.opened(path_of(config, name)) as found:
            return str(found.metadata.get("guest", {}).get("name"))
    except errors.MapsaveError:
        return None
