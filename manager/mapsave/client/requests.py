"""What may be requested of the service: the bodies of its requests; unknown fields are errors.

``Request`` has a subclass for each kind of operation; what a kind does is in ``service/work.py``.
"""

from typing import Annotated, Any, ClassVar, Literal, Union

import msgspec

from mapsave import config, errors, key_types, keys
from mapsave.image import store
from mapsave.key_types import Channels, Duration, Name, Note, Size, Switch, Text, Truth
from mapsave.keys import Check as Checked
from mapsave.keys import Keys, help, written
from mapsave.labels import policy
from mapsave.restore_settings import Warm as WarmWay


def _image(value: str) -> str:
    """Return a name in the image directory; a path would lead out of it."""
    if "/" in value:
        raise ValueError("must be the name of an image in the image directory, not a path")
    try:
        store.check_name(value)
    except errors.UsageError as error:
        raise ValueError(error.message) from None
    return value


def _policy(value: str) -> str:
    """Return the name of a policy; which file a path means only its user knows."""
    if policy.is_path(value):
        raise ValueError("must be the name of a label policy, not the path of a file")
    return value


def _guest(value: str) -> str:
    return value if value.startswith(key_types.ADDRESSES) else key_types.check_name(value)


def _xml(value: str) -> str:
    value.encode()  # raises a ValueError where it is no text
    return value


_IMAGE = r"^(?!\.{1,2}$|.*\.partial$)[^\u0000/]+$"
_ADDRESS = r"^(qmp:|libvirt[:+])[^\u0000]+$"

Image = Annotated[
    Text,
    Checked(_image),
    msgspec.Meta(extra_json_schema={"pattern": _IMAGE, "maxLength": 255}),
]
Policy = Annotated[
    Name,
    Checked(_policy),
    msgspec.Meta(extra_json_schema={"not": {"pattern": r"\.ya?ml$"}}),
]
# A name of the configuration, or an address, which only the administrator may give.
Guest = Annotated[
    Text,
    Checked(_guest),
    msgspec.Meta(
        extra_json_schema={
            "anyOf": [
                {"pattern": key_types.NAME_PATTERN, "maxLength": key_types.NAME_BYTES},
                {"pattern": _ADDRESS},
            ]
        }
    ),
]
Xml = Annotated[Text, Checked(_xml)]
AtOnce = Annotated[int, msgspec.Meta(ge=1, le=64)]
Rate = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Clones = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Request(Keys, frozen=True, tag_field="kind"):
    """A request to begin an operation, of the kind that its tag says.

    ``more_schema`` is what JSON Schema says beside its fields.
    """

    more_schema: ClassVar[dict[str, object]] = {}

    @property
    def kind(self) -> str:
        """The kind of the operation."""
        return name_of(type(self))

    @property
    def guest(self) -> str | None:
        """The guest that it is about, if it is about one; ``job`` and ``image`` likewise."""
        return None

    @property
    def job(self) -> str | None:
        return None

    @property
    def image(self) -> str | None:
        return None

    def as_dict(self) -> dict[str, object]:
        """Return what differs from the defaults, without what may hold passwords."""
        return _different(self)


class SaveOptions(config.SaveOptions, frozen=True):
    """How to save; what is not given is as the configuration says."""

    image: Annotated[Image | None, help("Name of the image (default: guest and time).")] = None
    policy: Annotated[Policy | None, help("Label policy of the image.")] = None
    note: Annotated[Note | None, help("A note for the image, which listings show.")] = None
    replace: Annotated[Truth, help("Whether an image of that name may be replaced.")] = False
    in_use: Annotated[Truth, help("Whether also one that a guest lives on.")] = False
    timeout: Annotated[Duration | None, help("Time limit of the save.")] = None
    bandwidth: Annotated[
        Size | None, help("Most bytes per second, if `service.bandwidth` allows as many.")
    ] = None


class Save(Request, frozen=True, tag="save"):
    """Save a guest."""

    guest: Annotated[Guest, help("The guest, by name or address.")]
    save: Annotated[SaveOptions, help("How to save it.")] = SaveOptions()


class RestoreOptions(Keys, frozen=True):
    """How to restore."""

    guest: Annotated[Guest | None, help("The guest to start, if it is not the image's own.")] = None
    run: Annotated[
        Literal["as-saved", "run", "paused"], help("Whether the guest runs after the restore.")
    ] = "as-saved"
    direct_io: Annotated[Switch | None, help("Whether to bypass the page cache.")] = None
    channels: Annotated[Channels | None, help("Number of multifd channels.")] = None
    instant: Annotated[
        Switch | None, help("Whether RAM is mapped from the image instead of read.")
    ] = None
    verify_data: Annotated[
        Truth | None,
        help(
            "Whether all data of the image is compared with its digests: before, or beside an "
            "instant restore."
        ),
    ] = None
    warm: Annotated[
        WarmWay | None, help("What is read into the page cache beside an instant restore.")
    ] = None
    policy: Annotated[Policy | None, help("Label policy of the image.")] = None
    again: Annotated[
        Truth, help("Whether an image that has been restored may be restored again.")
    ] = False
    force: Annotated[
        Truth,
        help(
            "Whether to accept an older QEMU, another processor or machine, or an image that is "
            "known to be damaged."
        ),
    ] = False
    timeout: Annotated[Duration | None, help("Time limit of the restore.")] = None
    through_libvirt: Annotated[Truth, help("Whether libvirt reads the image itself.")] = False
    into: Annotated[
        Text | None, help("QMP socket of a QEMU started with -incoming defer (root only).")
    ] = None
    xml: Annotated[Xml | None, help("Domain XML to use instead of the image's (root only).")] = None
    trust_image: Annotated[
        Truth, help("Whether to restore an image that others could have written (root only).")
    ] = False
    trust_recorded_command: Annotated[
        Truth, help("Whether to start the recorded command line (root only).")
    ] = False
    without_metadata: Annotated[
        Truth, help("Whether to restore an image whose metadata are damaged (root only).")
    ] = False


class Restore(Request, frozen=True, tag="restore"):
    """Restore an image."""

    image: Annotated[Image, help("Name of the image.")]
    restore: Annotated[RestoreOptions, help("How to restore it.")] = RestoreOptions()

    def as_dict(self) -> dict[str, object]:
        found = _different(self)
        if self.restore.xml is not None:
            found["restore"] = {**_different(self.restore), "xml": "given"}
        return found


class CloneOptions(Keys, frozen=True):
    """How many clones, and how they are started."""

    count: Annotated[
        Clones | None, help("How many (default: 1); they get the first numbers that are free.")
    ] = None
    names: Annotated[tuple[Name, ...], help("Their names, instead of a count.")] = ()
    guest: Annotated[
        Guest | None, help("The guest whose `clone` is used, if it is not the image's own.")
    ] = None
    parallel: Annotated[AtOnce | None, help("How many are started at once (default: 8).")] = None
    run: Annotated[Literal["as-saved", "run", "paused"], help("Whether they run after that.")] = (
        "as-saved"
    )
    again: Annotated[Truth, help("Whether an image that has been restored may be cloned.")] = False
    force: Annotated[
        Truth,
        help(
            "Whether to accept an older QEMU, another processor or machine, or an image that is "
            "known to be damaged."
        ),
    ] = False
    trust_image: Annotated[
        Truth, help("Whether to clone an image that others could have written (root only).")
    ] = False


class Clone(Request, frozen=True, tag="clone"):
    """Start several guests from one image; it stays as it is."""

    image: Annotated[Image, help("Name of the image.")]
    clone: Annotated[CloneOptions, help("How many, and how.")] = CloneOptions()


class CheckOptions(Keys, frozen=True):
    """The save that is checked."""

    image: Annotated[Image | None, help("Name of the image.")] = None
    policy: Annotated[Policy | None, help("Label policy of the image.")] = None
    direct_io: Annotated[Switch | None, help("Whether to bypass the page cache.")] = None
    method: Annotated[config.Method | None, help("`checkpoint`: whether one can be taken.")] = None
    then: Annotated[config.Then | None, help("What becomes of the guest afterwards.")] = None


class Check(Request, frozen=True, tag="check"):
    """Report what would fail if a guest were saved, or a job run; nothing is touched."""

    guest: Annotated[Guest | None, help("The guest, by name or address.")] = None
    job: Annotated[Name | None, help("A job instead of a guest; it defines how to save.")] = None
    check: Annotated[CheckOptions | None, help("The save that is checked.")] = None

    more_schema: ClassVar[dict[str, object]] = {
        "oneOf": [
            {
                "required": ["guest"],
                "properties": {"guest": {"type": "string"}, "job": {"type": "null"}},
            },
            {
                "required": ["job"],
                "properties": {
                    "job": {"type": "string"},
                    "guest": {"type": "null"},
                    "check": {"type": "null"},
                },
            },
        ]
    }

    def __post_init__(self) -> None:
        """Raise ValueError for what no definition of a single field can refuse."""
        if (self.guest is None) == (self.job is None):
            raise ValueError("needs either 'guest' or 'job'")
        if self.job is not None and self.check is not None:
            raise ValueError("'check' applies to 'guest' only: a job defines how to save")


class Verify(Request, frozen=True, tag="verify"):
    """Prove that an image is whole."""

    image: Annotated[Image, help("Name of the image.")]
    data: Annotated[Truth, help("Whether to compare its data with its digests.")] = False
    add_digests: Annotated[
        Truth, help("Whether to take digests first, if they are still to be taken.")
    ] = False


class Discard(Request, frozen=True, tag="discard"):
    """Delete an image."""

    image: Annotated[Image, help("Name of the image.")]
    unrestored: Annotated[Truth, help("Whether to delete an image that was never restored.")] = (
        False
    )
    in_use: Annotated[Truth, help("Whether to delete an image that a guest lives on.")] = False


class Pin(Request, frozen=True, tag="pin"):
    """Keep an image: it is neither deleted nor replaced."""

    image: Annotated[Image, help("Name of the image.")]


class Unpin(Request, frozen=True, tag="unpin"):
    """Let a pinned image be deleted again."""

    image: Annotated[Image, help("Name of the image.")]


class Warm(Request, frozen=True, tag="warm"):
    """Read an image's working set into the page cache, or learn it."""

    image: Annotated[Image, help("Name of the image.")]
    learn: Annotated[
        Truth, help("Record which pages the guests that live on it have touched; read nothing.")
    ] = False
    all: Annotated[Truth, help("Read all other pages, too, after those of the working set.")] = (
        False
    )
    rate: Annotated[Rate | None, help("Most bytes per second.")] = None
    timeout: Annotated[Duration | None, help("How long to read at most.")] = None


class Recover(Request, frozen=True, tag="recover"):
    """Finish or undo what an interrupted mapsave left."""

    dry_run: Annotated[Truth, help("Only report what would be done.")] = False


class RunJob(Request, frozen=True, tag="job"):
    """Run a job now."""

    job: Annotated[Name, help("Name of the job.")]


class Prune(Request, frozen=True, tag="prune"):
    """Remove the images that a job does not keep."""

    job: Annotated[Name, help("Name of the job.")]
    dry_run: Annotated[Truth, help("Only report what would be removed.")] = False
    in_use: Annotated[Truth, help("Whether images that guests live on are removed.")] = False


class SaveAll(Request, frozen=True, tag="save-all"):
    """Save every guest, before the host goes down."""

    guests: Annotated[tuple[Text, ...], help("Names or patterns (default: all guests).")] = ()
    libvirt: Annotated[
        Text | None, help("URI of a libvirt whose active domains are saved as well (root only).")
    ] = None
    deadline: Annotated[Duration | None, help("Time limit.")] = None
    parallel: Annotated[AtOnce | None, help("Saves at once (default: as the disk allows).")] = None
    then: Annotated[config.Then, help("What to do with each guest after its save.")] = "quit"
    dry_run: Annotated[Truth, help("Only report what would be done.")] = False


class RestoreAll(Request, frozen=True, tag="restore-all"):
    """Bring back what save-all saved."""

    parallel: Annotated[AtOnce | None, help("Restores in parallel (default: 2).")] = None
    discard: Annotated[Truth, help("Delete each image once its guest is restored.")] = False
    dry_run: Annotated[Truth, help("Only report what would be done.")] = False


def name_of(kind: type[Request]) -> str:
    """Return the name of a kind of operation, by its request."""
    return str(kind.__struct_config__.tag)


KINDS: dict[str, type[Request]] = {name_of(each): each for each in Request.__subclasses__()}
ANY: Any = Annotated[Union[tuple(KINDS.values())], written("an object")]  # noqa: UP007 (made of a list)


def parse(body: object) -> Request:
    """Return the request that a body means. Raises RequestInvalid naming each field that is not."""
    request: Request = read(body, ANY)
    return request


def read(data: object, kind: Any) -> Any:
    """Return ``data`` as an instance of ``kind``. Raises RequestInvalid with all that is wrong."""
    try:
        return keys.read(data, kind)
    except keys.Mistakes as mistakes:
        found = [{"field": keys.path(each.loc), "message": each.message} for each in mistakes.found]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise errors.RequestInvalid(
            found[0]["message"] + more,
            hint="see GET /v1/openapi.json",
            errors=found,
        ) from None


def _different(definition: Keys) -> dict[str, object]:
    found: dict[str, object] = {}
    given = getattr(definition, "given", ())
    for field in keys.fields(type(definition)).values():
        value = getattr(definition, field.name)
        if value != field.default or field.name in given:
            found[field.name] = _different(value) if isinstance(value, Keys) else value
    return found
