"""The YAML form of a label policy. Imported only when such a file is read."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from manager import yaml_file
from manager.labels import policy

if TYPE_CHECKING:
    from pathlib import Path

_MODE = re.compile(r"0?[0-7]{3}")
_CONTEXT = re.compile(r"[^\s:]+:[^\s:]+:[^\s:]+(:\S+)?")
_SELINUX_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# Documentation/admin-guide/LSM/Smack.rst of the kernel: what a label may be.
_SMACK_LABEL = re.compile(r"(?!-)[!-~]{1,255}")
_SMACK_FORBIDDEN = set("/\"\\'")


def _check_mode(text: str) -> str:
    if not _MODE.fullmatch(text):
        raise ValueError(f'{text!r} is not a mode: write three octal digits, as in "0600"')
    return text


def _check_absolute(text: str) -> str:
    if not os.path.isabs(text):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def _check_context(text: str) -> str:
    if not _CONTEXT.fullmatch(text):
        raise ValueError(f"{text!r} is not a context: write user:role:type:level")
    return text


def _check_selinux_type(text: str) -> str:
    if not _SELINUX_TYPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a type, as in svirt_image_t")
    return text


def _check_selinux_rest(text: str) -> str:
    return text if text in ("default", "previous", "keep") else _check_context(text)


def _check_smack(text: str) -> str:
    if not _SMACK_LABEL.fullmatch(text) or _SMACK_FORBIDDEN & set(text):
        raise ValueError(f"{text!r} is not a Smack label")
    return text


def _check_template(text: str) -> str:
    left = text.replace("{profile}", "")
    if "{" in left or "}" in left:
        raise ValueError(f"{text!r}: {{profile}} is the only thing that can be put in")
    return _check_absolute(text)


Absolute = Annotated[str, AfterValidator(_check_absolute)]
Context = Annotated[str, AfterValidator(_check_context)]
SmackLabel = Annotated[str, AfterValidator(_check_smack)]
Template = Annotated[str, AfterValidator(_check_template)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SelinuxModel(_Model):
    """The ``selinux`` section."""

    image_type: Annotated[str, AfterValidator(_check_selinux_type)] | None = None
    label: Context | None = None
    at_rest: Annotated[str, AfterValidator(_check_selinux_rest)] = "default"


class ProfileFilesModel(_Model):
    """One entry of ``apparmor.profiles``."""

    match: str
    rules_file: Template
    profile_file: Template


class ApparmorModel(_Model):
    """The ``apparmor`` section."""

    profiles: list[ProfileFilesModel] | None = None


class SmackModel(_Model):
    """The ``smack`` section."""

    label: SmackLabel | None = None
    at_rest: SmackLabel = "previous"


class PolicyModel(_Model):
    """The whole file."""

    module: Literal["auto", "selinux", "apparmor", "smack", "dac", "none"]
    description: str | None = None
    directories: list[Absolute] = Field(default_factory=list)
    owner: str | None = None
    group: str | None = None
    mode: Annotated[str, AfterValidator(_check_mode)] | None = None
    selinux: SelinuxModel = Field(default_factory=SelinuxModel)
    apparmor: ApparmorModel = Field(default_factory=ApparmorModel)
    smack: SmackModel = Field(default_factory=SmackModel)


def read(file: Path) -> policy.Policy:
    """Return the policy in ``file``; its name is the file's without the suffix.

    Raises ConfigMissing, or ConfigError with file, line and the nearest valid key.
    """
    document = yaml_file.read(file)
    model = document.validate(PolicyModel)
    for section in ("selinux", "apparmor", "smack"):
        if section in document.data and model.module not in (section, "auto"):
            raise document.error(
                (section,), f"the section {section!r} means nothing with module: {model.module}"
            )
    return policy.Policy(
        name=file.stem,
        module=model.module,
        directories=tuple(model.directories),
        owner=model.owner,
        group=model.group,
        mode=None if model.mode is None else int(model.mode, 8),
        selinux=policy.SelinuxOptions(**model.selinux.model_dump()),
        apparmor=_apparmor(model.apparmor),
        smack=policy.SmackOptions(**model.smack.model_dump()),
    )


def _apparmor(model: ApparmorModel) -> policy.ApparmorOptions:
    if model.profiles is None:
        return policy.ApparmorOptions()
    entries = (policy.ProfileFiles(**entry.model_dump()) for entry in model.profiles)
    return policy.ApparmorOptions(profiles=tuple(entries))
