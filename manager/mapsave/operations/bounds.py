"""What root has configured binds operators: whose image goes where, and its label policy."""

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.image.metadata import Metadata


def owner(metadata: Metadata) -> str | None:
    """Return the name of the guest that an image is of; None where it does not say."""
    return metadata.get("guest", {}).get("name")


def check_clone(config: Config, metadata: Metadata, guest: str | None, image: str) -> None:
    """Raise RoleMissing unless an operator may restore the ``image`` as ``guest``; None is its own.

    Its own guest, by name or as its domain, and one whose ``clones`` says so, are allowed.
    """
    if guest is None or guest == owner(metadata):
        return
    configured = config.named(guest)
    known = metadata.get("guest", {})
    names = (known.get("name"), known.get("qemu_name"), known.get("uuid"))
    if configured is not None:
        is_domain = configured.libvirt is not None and configured.libvirt.domain in names
        if is_domain or configured.clones == "operator":
            return
    raise errors.RoleMissing(
        f"{image!r} is an image of guest {owner(metadata)!r}, which only an admin may restore as "
        f"{guest!r}",
        hint=f"'clones: operator' of guest {guest!r} in the configuration allows it",
        role="operator",
        needed="admin",
    )


def check_template(guest: Guest, image: str) -> None:
    """Raise RoleMissing unless operators may clone the ``image`` as ``guest`` says."""
    if guest.clones != "operator":
        raise errors.RoleMissing(
            f"only an admin may clone {image!r} as guest {guest.name!r}",
            hint=f"'clones: operator' of guest {guest.name!r} in the configuration allows it",
            role="operator",
            needed="admin",
        )


def check_policy(config: Config, guest: str | None, asked: str | None) -> None:
    """Raise RoleMissing where an operator asks for another label policy than root has set.

    That is the one of the guest, else the general one; where neither is set operators choose.
    """
    configured = config.named(guest) if guest is not None else None
    own = configured.policy if configured is not None else None
    bound = own or config.save.policy
    if asked is None or bound is None or asked == bound:
        return
    raise errors.RoleMissing(
        f"the label policy of guest {guest!r} is {bound!r}; only an admin may choose another, "
        f"{asked!r}",
        hint="omit the policy",
        role="operator",
        needed="admin",
    )
