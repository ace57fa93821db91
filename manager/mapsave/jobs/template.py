"""The ``image:`` of a save job: a file name with ``{guest}``, ``{job}``, ``{time}``, ``{uuid}``.

Own rendering, because ``str.format`` would give a file access to attributes of our objects.
"""

import datetime
import string
import uuid
from dataclasses import dataclass

FIELDS = ("guest", "job", "time", "uuid")
DEFAULT_TIME = "%Y%m%dT%H%M%SZ"
DEFAULT = "{guest}-{time}.mapsave"
NAME_BYTES = 255  # NAME_MAX of every Linux file system, limits.h

_Part = tuple[str, str | None, str]  # text, field or None, format of the field


@dataclass(frozen=True)
class Template:
    """A checked template; make it with ``parse``."""

    text: str
    parts: tuple[_Part, ...]

    @property
    def distinguishes_guests(self) -> bool:
        """Whether two guests saved at the same moment get different names."""
        return any(field in ("guest", "uuid") for _, field, _ in self.parts)

    def render(self, guest: str, job: str, when: datetime.datetime, unique: uuid.UUID) -> str:
        """Return the name; ``when`` must know its time zone and is shown in UTC.

        Raises ValueError if it is no name for a file in the image directory.
        """
        values = {"guest": guest, "job": job, "uuid": str(unique)}
        moment = when.astimezone(datetime.UTC)
        name = "".join(
            before + (moment.strftime(form) if key == "time" else values[key] if key else "")
            for before, key, form in self.parts
        )
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a file name")
        if len(name.encode()) > NAME_BYTES:
            raise ValueError(f"{name[:40]!r}... is longer than {NAME_BYTES} bytes")
        if name.startswith(".") or name.endswith(".partial"):
            raise ValueError(f"{name!r} is reserved for unfinished files")
        return name


def parse(text: str) -> Template:
    """Return the template in ``text``; raise ValueError naming the field that is wrong."""
    parts: list[_Part] = []
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError as exc:
        raise ValueError(f"{exc} (write {{{{ and }}}} for braces)") from None
    for before, field, form, conversion in fields:
        if field is None:
            parts.append((before, None, ""))
            continue
        if field not in FIELDS:
            known = ", ".join(f"{{{each}}}" for each in FIELDS)
            raise ValueError(f"unknown field {{{field}}} (known: {known})")
        if conversion or (form and (field != "time" or "{" in form or "}" in form)):
            raise ValueError(f"{{{field}}} takes no format here; only {{time:%Y...}} does")
        parts.append((before, field, form or DEFAULT_TIME))
    return Template(text, tuple(parts))
