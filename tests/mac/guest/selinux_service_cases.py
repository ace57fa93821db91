"""SELinux: mapsaved in the domain of the manager."""

from pathlib import Path

from tests.kit import cli, patterns, ram
from tests.mac.guest import mapsaved, meddling, svirt

MANAGER = "system_u:system_r:initrc_t:s0"


def test_service_saves_with_the_right_label(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "served"
    partial = image.with_name("served.partial")
    seen = len(svirt.kernel_log())
    with svirt.running(ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy="selinux-svirt")
        before = guest.snapshot_ram(tmp_path / "before")
        with mapsaved.running(site) as service:
            assert svirt.context_of(service.pid) == MANAGER
            with site.start("save", "web01", "--image", image, "--json") as process:
                mapsaved.await_begin(site)
                with meddling.held(service.process, lambda: meddling.handed_over(guest)):
                    assert svirt.label_of(partial) == svirt.IMAGE
                saved = cli.ended(process)
            assert saved.returncode == 0, saved
            guest.wait()
            assert svirt.label_of(image) == svirt.AT_REST
            (done,) = site.run("ps", "--all", "--json", check=0).json()["operations"]
            assert (done["kind"], done["state"]) == ("save", "done")
            assert done["result"]["label"]["value"] == svirt.IMAGE
            site.run("restore", image, check=0)
            with guest.successor() as restored:
                assert svirt.context_of(restored.pid) == svirt.GUEST
                ram.assert_same(before, restored.ram)
            assert service.stop() == 0
    assert svirt.refusals("served") == []
    assert not [line for line in svirt.kernel_log()[seen:] if f"scontext={MANAGER}" in line]
