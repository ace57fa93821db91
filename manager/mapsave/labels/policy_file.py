"""The YAML form of a label policy. Imported only when such a file is read.

A file that is right is read by the readers here; for any other ``policy_models.py``, the same keys
as pydantic models, says what is wrong.
"""

from __future__ import annotations

import os
import re
import typing
from typing import TYPE_CHECKING, Any

from mapsave import values, yaml_file
from mapsave.labels import policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_LAST_ID = 2**32 - 2  # -1 is "as it is" to chown(2)
_MODE = re.compile(r"0?[0-7]{3}")
_CONTEXT = re.compile(r"[^\s:]+:[^\s:]+:[^\s:]+(:\S+)?")
_SELINUX_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# Documentation/admin-guide/LSM/Smack.rst of the kernel: what a label may be.
_SMACK_LABEL = re.compile(r"(?!-)[!-~]{1,255}")
_SMACK_FORBIDDEN = set("/\"\\'")


def check_mode(text: str) -> str:
    """Return the mode ``text`` of three octal digits; raise ValueError for none."""
    if not _MODE.fullmatch(text):
        raise ValueError(f'{text!r} is not a mode: write three octal digits, as in "0600"')
    return text


def check_owner(text: str) -> str:
    """Return the name or number of a user or a group; raise ValueError for none."""
    values.text(text)
    is_number = text.isascii() and text.isdigit()
    if is_number and (len(text) > len(str(_LAST_ID)) or int(text) > _LAST_ID):
        raise ValueError(f"{text!r} is not the number of a user or group: at most {_LAST_ID}")
    return text


def check_absolute(text: str) -> str:
    """Return the absolute path ``text``; raise ValueError for another."""
    values.text(text)
    if not os.path.isabs(text):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def check_context(text: str) -> str:
    """Return the SELinux context ``text``; raise ValueError for none."""
    if not _CONTEXT.fullmatch(text):
        raise ValueError(f"{text!r} is not a context: write user:role:type:level")
    return text


def check_selinux_type(text: str) -> str:
    """Return the SELinux type ``text``; raise ValueError for none."""
    if not _SELINUX_TYPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a type, as in svirt_image_t")
    return text


def check_selinux_rest(text: str) -> str:
    """Return what ``selinux.at_rest`` may be; raise ValueError for anything else."""
    return text if text in ("default", "previous", "keep") else check_context(text)


def check_smack(text: str) -> str:
    """Return the Smack label ``text``; raise ValueError for none."""
    if not _SMACK_LABEL.fullmatch(text) or _SMACK_FORBIDDEN & set(text):
        raise ValueError(f"{text!r} is not a Smack label")
    return text


def check_template(text: str) -> str:
    """Return the absolute path ``text`` with ``{profile}`` in it or not; raise ValueError else."""
    left = text.replace("{profile}", "")
    if "{" in left or "}" in left:
        raise ValueError(f"{text!r}: {{profile}} is the only placeholder")
    return check_absolute(text)


def read(file: Path) -> policy.Policy:
    """Return the policy in ``file``; its name is the file's without the suffix.

    Raises ConfigMissing, or ConfigError with file, line and the nearest valid key.
    """
    document = yaml_file.read(file)
    found = _values(document)
    for section in ("selinux", "apparmor", "smack"):
        if section in document.data and found["module"] not in (section, "auto"):
            raise document.error(
                (section,), f"the section {section!r} does not apply to module: {found['module']}"
            )
    return policy.Policy(
        name=file.stem,
        module=found["module"],
        directories=tuple(found["directories"]),
        owner=found["owner"],
        group=found["group"],
        mode=None if found["mode"] is None else int(found["mode"], 8),
        selinux=policy.SelinuxOptions(**found["selinux"]),
        apparmor=_apparmor(found["apparmor"]["profiles"]),
        smack=policy.SmackOptions(**found["smack"]),
    )


def _values(document: yaml_file.Document) -> dict[str, Any]:
    """Return every key of the file, None or its default where it is not given."""
    try:
        found: dict[str, Any] = quick(document.data)
        return found
    except ValueError:
        from mapsave.labels import policy_models

        return document.validate(policy_models.PolicyModel).model_dump()


def _apparmor(profiles: list[Mapping[str, str]] | None) -> policy.ApparmorOptions:
    if profiles is None:
        return policy.ApparmorOptions()
    return policy.ApparmorOptions(tuple(policy.ProfileFiles(**entry) for entry in profiles))


def _checked(check: Callable[[str], str]) -> values.Reader:
    return lambda value: check(values.string(value))


_TEMPLATE = _checked(check_template)
_SELINUX = values.record(
    maybe={"image_type": _checked(check_selinux_type), "label": _checked(check_context)},
    preset={"at_rest": (_checked(check_selinux_rest), "default")},
)
_PROFILE = values.record(
    needed={"match": values.string, "rules_file": _TEMPLATE, "profile_file": _TEMPLATE}
)
_APPARMOR = values.record(maybe={"profiles": values.sequence(_PROFILE)})
_SMACK = values.record(
    maybe={"label": _checked(check_smack)}, preset={"at_rest": (_checked(check_smack), "previous")}
)
# What pydantic's PolicyModel would give by model_dump(), of a file that is right.
quick = values.record(
    needed={"module": values.word(*typing.get_args(policy.Module))},
    maybe={
        "description": values.string,
        **dict.fromkeys(("owner", "group"), _checked(check_owner)),
        "mode": _checked(check_mode),
    },
    preset={
        "directories": (values.sequence(_checked(check_absolute)), []),
        "selinux": (_SELINUX, _SELINUX({})),
        "apparmor": (_APPARMOR, _APPARMOR({})),
        "smack": (_SMACK, _SMACK({})),
    },
)
