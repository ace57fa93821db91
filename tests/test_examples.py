"""The examples and the documentation of the configuration say what the code does."""

from __future__ import annotations

import dataclasses

import pytest
from mapsave import config, service_settings
from mapsave.jobs import job, job_models, schedule

from tests.kit import tree

DOCUMENTATION = (tree.ROOT / "docs/configuration.md").read_text()


def test_example_job_saves_the_guests_of_the_example_configuration() -> None:
    configured = config.load(tree.ROOT / "examples/manager.yaml", {})
    nightly = job.load(tree.ROOT / "examples/nightly.yaml")
    assert nightly.resolve(configured) == ["web01", "db01"]
    assert nightly.settings(configured).then == "resume"
    assert nightly.schedule == schedule.Schedule("30 2 * * *", "Europe/Berlin", True, 600.0)
    assert nightly.keep == job.Keep(last=3, daily=7, weekly=4)
    assert nightly.retries.times == 3
    assert configured.guests["web01"].launch[0] == "qemu-system-x86_64"


def test_example_configuration_sets_what_is_built_in_for_root() -> None:
    configured = config.load(tree.ROOT / "examples/manager.yaml", {})
    built_in = config.defaults({}, root=True)
    for name in ("images", "state", "socket", "jobs", "save", "service", "hooks", "notify"):
        assert getattr(configured, name) == getattr(built_in, name)


@pytest.mark.parametrize(
    "kind",
    [
        *(config.Config, config.Guest, config.EmulatedGuest, config.SaveSettings, job.Keep),
        *(config.Trust, config.Service, config.Hooks, config.Webhook, service_settings.Listen),
        *(schedule.Schedule, job.Retries),
    ],
)
def test_every_key_is_documented(kind: type) -> None:
    keys = {each.name for each in dataclasses.fields(kind)} - {"source", "name"}
    assert {key for key in keys if f"`{key}`" not in DOCUMENTATION} == set()


def test_every_key_of_a_job_is_documented() -> None:
    part = DOCUMENTATION.partition("## Save jobs")[2].partition("## YAML")[0]
    models = (job_models.JobModel, job_models.ScheduleModel, job_models.RetriesModel)
    keys = {key for model in models for key in model.model_fields}
    keys |= {*job_models.JobHooksModel.model_fields, *job_models.KeepModel.model_fields}
    assert {key for key in keys if f"`{key}`" not in part} == set()


def test_defaults_are_documented() -> None:
    for each in dataclasses.fields(config.SaveSettings):
        if each.default is not None:
            (row,) = [line for line in DOCUMENTATION.splitlines() if f"| `{each.name}` |" in line]
            assert row.endswith(f"| `{str(each.default).lower()}` |")
