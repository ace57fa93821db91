"""The YAML form of a label policy as pydantic models: what is wrong with a file.

A file that is right is read by ``policy_file.py``, which must read it as these models would.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mapsave.labels import policy, policy_file

Absolute = Annotated[str, AfterValidator(policy_file.check_absolute)]
Owner = Annotated[str, AfterValidator(policy_file.check_owner)]
Context = Annotated[str, AfterValidator(policy_file.check_context)]
SmackLabel = Annotated[str, AfterValidator(policy_file.check_smack)]
Template = Annotated[str, AfterValidator(policy_file.check_template)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SelinuxModel(_Model):
    """The ``selinux`` section."""

    image_type: Annotated[str, AfterValidator(policy_file.check_selinux_type)] | None = None
    label: Context | None = None
    at_rest: Annotated[str, AfterValidator(policy_file.check_selinux_rest)] = "default"


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

    module: policy.Module
    description: str | None = None
    directories: list[Absolute] = Field(default_factory=list)
    owner: Owner | None = None
    group: Owner | None = None
    mode: Annotated[str, AfterValidator(policy_file.check_mode)] | None = None
    selinux: SelinuxModel = Field(default_factory=SelinuxModel)
    apparmor: ApparmorModel = Field(default_factory=ApparmorModel)
    smack: SmackModel = Field(default_factory=SmackModel)
