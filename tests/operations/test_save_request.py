"""The request of a save: completed by configuration, and which images it may replace."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mapsave import config, errors
from mapsave.migration.progress import Progress
from mapsave.monitor.domain import Domain
from mapsave.operations import save, save_request

from tests.kit import cli, emulated

PLAIN = config.Guest("web", qmp=Path("/run/web.qmp"))
OF_LIBVIRT = config.Guest("db", libvirt=config.LibvirtDomain("db"))
LABEL = "system_u:object_r:svirt_image_t:s0:c1,c2"


def configuration(tmp_path: Path, policies: str = "") -> config.Config:
    places = {name: tmp_path / name for name in ("images", "state", "socket", "jobs")}
    directory = tmp_path / "policies"
    directory.mkdir()
    (directory / "own.yaml").write_text(policies or "module: auto\n")
    return config.Config(**places, policies=directory)


def domain(label: str | None) -> Domain:
    seclabel = f"<seclabel model='selinux'><imagelabel>{label}</imagelabel></seclabel>"
    live = f"<domain>{seclabel if label else ''}</domain>"
    return Domain(
        uri="qemu:///system",
        name="db",
        uuid="63485de2-3445-42e8-ae99-094ba34fae00",
        state="running",
        xml="<domain/>",
        live_xml=live,
        persistent_xml=None,
        job=None,
        block_jobs=(),
        has_managed_save=False,
        libvirt=(11, 3, 0),
        host_devices=(),
    )


@pytest.mark.parametrize("name", ["漢" * 80, "a" + "é" * 110, "n" * 240, "/run/" + "\udcff" * 160])
def test_image_is_named_after_a_guest_of_any_name(tmp_path: Path, name: str) -> None:
    """The longest are those that libvirt takes: 240 bytes and more."""
    of_libvirt = config.Guest(f"libvirt:{name}", libvirt=config.LibvirtDomain(name))
    for guest in (of_libvirt, config.Guest(f"qmp:{name}", qmp=Path(name))):
        request = save_request.Request()
        with save_request.place(guest, configuration_of(tmp_path), request) as (held, found):
            os.close(os.open(found, os.O_CREAT | os.O_WRONLY, dir_fd=held.fd))
        assert name.replace("/", "_").strip("_").startswith(found.partition("-2")[0])
        assert len(os.fsencode(found)) < 200


@pytest.mark.parametrize(
    ("guest", "wanted", "expected"),
    [
        (PLAIN, None, "native"),
        (PLAIN, "auto", "native"),
        (PLAIN, "native", "native"),
        (OF_LIBVIRT, None, "libvirt"),
        (OF_LIBVIRT, "auto", "libvirt"),
        (OF_LIBVIRT, "native", "native"),
        (OF_LIBVIRT, "libvirt", "libvirt"),
    ],
)
def test_format(tmp_path: Path, guest: config.Guest, wanted: str | None, expected: str) -> None:
    made = save_request.request(configuration(tmp_path), guest, format=wanted)
    assert made.format == expected


def test_libvirts_format_needs_a_guest_of_libvirt(tmp_path: Path) -> None:
    with pytest.raises(errors.Unsupported, match="no domain XML"):
        save_request.request(configuration(tmp_path), PLAIN, format="libvirt")


def test_image_gets_the_label_of_the_domains_own_disks(tmp_path: Path) -> None:
    policy = save_request.policy_of(configuration(tmp_path), PLAIN, "own")
    found = save_request.policy_labelling(policy, domain(LABEL))
    assert found.policy.selinux.label == LABEL
    without = save_request.policy_labelling(policy, domain(None))
    assert without.policy.selinux.label is None


@pytest.mark.parametrize("option", ["label: 'system_u:object_r:other_t:s0'", "image_type: other_t"])
def test_a_policy_that_names_a_label_wins(tmp_path: Path, option: str) -> None:
    text = f"module: auto\nselinux:\n  {option}\n"
    policy = save_request.policy_of(configuration(tmp_path, text), PLAIN, "own")
    found = save_request.policy_labelling(policy, domain(LABEL))
    assert found.policy.selinux.label != LABEL


def broken(site: cli.Site) -> str:
    site.settings["policies"] = str(site.directory)
    (site.directory / "own.yaml").write_text("modul: auto\n")
    return "own"


def test_a_broken_policy_is_refused_before_the_monitor_is_opened(site: cli.Site) -> None:
    site.add_guest("web", site.directory / "nowhere", policy=broken(site))
    for command in ("save", "check"):
        assert "modul" in site.run(command, "web", "--json", check=2).error()["message"]


def test_and_before_a_destination_is_started(site: cli.Site) -> None:
    with emulated.guest(site, "web"):
        image = site.run("save", "web", "--json", check=0).json()["image"]
    site.add_guest("web", site.directory / "nowhere", launch=["true"], policy=broken(site))
    error = site.run("restore", image, "--trust-image", "--json", check=2).error()
    assert "modul" in error["message"]


def configuration_of(tmp_path: Path) -> config.Config:
    places = {name: tmp_path / name for name in ("images", "state", "socket", "jobs")}
    return config.Config(**places, policies=tmp_path / "policies")


def test_default_name_is_the_domains(tmp_path: Path) -> None:
    address = "libvirt+qemu+unix:///system?socket=/a#web/01"
    guest = config.Guest(address, libvirt=config.LibvirtDomain("web/01", "qemu:///system"))
    settings = configuration(tmp_path)
    with save_request.place(guest, settings, save_request.Request()) as (_, name):
        assert name.startswith("web_01-")


IMAGE = "one.mapsave"


async def _saved(site: cli.Site, name: str, report: Any = lambda _: None, **more: Any) -> None:
    found = config.load(site.config, {})
    guest = found.guest(name)
    request = save_request.request(found, guest, image=IMAGE, then="resume", **more)
    await save.save(guest, found, request, report)


async def test_the_image_of_another_guest_is_not_replaced(site: cli.Site) -> None:
    with emulated.guest(site, "web") as web, emulated.guest(site, "db"):
        await _saved(site, "db")
        with pytest.raises(errors.ImageExists, match="another guest, 'db'"):
            await _saved(site, "web", replace=True, replace_only="web")
        assert emulated.status(web) == "running"
        await _saved(site, "db", replace=True, replace_only="db")
        await _saved(site, "web", replace=True)
        assert list(site.images.iterdir()) == [site.images / IMAGE]


async def test_nor_one_that_comes_up_in_the_middle_of_the_save(
    site: cli.Site, tmp_path: Path
) -> None:
    with emulated.guest(site, "web") as web, emulated.guest(site, "db"):
        await _saved(site, "db")
        theirs = tmp_path / "theirs"
        shutil.move(site.images / IMAGE, theirs)

        def comes_up(now: Progress) -> None:
            if now.phase == "validate":
                shutil.copy(theirs, site.images / IMAGE)

        with pytest.raises(errors.ImageExists, match="another guest, 'db'"):
            await _saved(site, "web", comes_up, replace=True, replace_only="web")
        assert emulated.status(web) == "running"
        assert list(site.images.iterdir()) == [site.images / IMAGE]
        assert (site.images / IMAGE).read_bytes() == theirs.read_bytes()
