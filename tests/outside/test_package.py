"""The Debian packages: each in a chroot of its release, from its installation to its purge.

The tests of a class are in the order of a package's life.
"""

import os
import re
import shutil
import subprocess
from typing import ClassVar

import pytest

from tests.kit import need, tree
from tests.outside import packages
from tests.outside.packages import Package

pytestmark = [pytest.mark.root, pytest.mark.timeout(3000)]

CONFIGURATION = """\
guests:
  toy: {emulator: {memory: 8M}}
  slow: {qmp: /run/slow.qmp}
"""
# A save that takes two minutes if it is left alone, or at another rate.
BEGIN = """\
at=${at-/run}
rm -f $at/slow.qmp
$as mapsave emulate --qmp $at/slow.qmp --memory 8M --pattern random --throttle 64K &
until [ -S $at/slow.qmp ]; do sleep 0.1; done
$as mapsave --quiet save slow -o slow.mapsave &
saving=$!
until $as mapsave recover --pending | grep "in progress"; do kill -0 $saving; sleep 0.1; done
"""
# As a user who has a configuration of their own.
ALONE = """\
at=/var/tmp/own
install -d -o 4711 -g 4711 -m 700 $at
echo "{state: $at, images: $at, guests: {slow: {qmp: $at/slow.qmp}}}" >$at/own.yaml
as="setpriv --reuid=4711 --regid=4711 --clear-groups env HOME=$at MAPSAVE_CONFIG=$at/own.yaml"
"""
# As a user who has none: images, state and journals are where XDG has them.
OF_A_USER = """\
echo "ursula:x:4712:4712::/home/ursula:/bin/sh" >>/etc/passwd
at=/home/ursula
install -d -o 4712 -g 4712 -m 700 $at
as="setpriv --reuid=4712 --regid=4712 --clear-groups env HOME=$at MAPSAVE_CONFIG=$at/it.yaml"
echo "{guests: {slow: {qmp: $at/slow.qmp}}}" >$at/it.yaml
"""
# Installed, looked at and removed by RPM alone; what is wrong with a unit is printed.
RPM = """\
mount -t proc proc $1/proc
mount --bind /dev/null $1/usr/bin/deb-systemd-helper
rpm --root $1 --nodeps -i $2
chroot $1 sh -ec '
mapsaved --version
getent group mapsave
test -d /etc/mapsave/jobs.d
find /usr/lib/mapsave -name "*.pyc" | grep -q .
' >&2
chroot $1 sh -ec '
cd /usr/lib/systemd/system
systemd-analyze verify mapsaved.* mapsave-*-all.service
' 2>&1
rpm --root $1 -e mapsave
"""
# What is left after a purge: of mapsave, and not of the test or of the packages' logs.
REMAINS = (
    "find / -xdev -name '*mapsave*' ! -path '/proc/*' ! -path '/root/*' ! -path '/var/log/*'"
    " ! -path '/var/cache/*'"
)


@pytest.fixture(scope="class")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    need.skip_if(packages.unavailable())
    assert request.cls is not None
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # all workers have it in common
    return packages.built(request.cls.release, place)


@pytest.fixture(scope="class")
def installed(built: Package) -> Package:
    """The package, installed as the README says."""
    directory = built.chroot / "root/dist"
    directory.mkdir(exist_ok=True)
    shutil.copy(built.deb, directory)
    # Those come later: libvirt is large.
    built.run("apt-get install -q -y --no-install-recommends ./dist/mapsave_*.deb")
    (built.chroot / "etc/mapsave/manager.yaml").write_text(CONFIGURATION)
    return built


class OfOneRelease:
    """The tests of a package; a class below this one names the release of Debian."""

    release: ClassVar[str]

    def test_lintian_finds_no_error(self, built: Package) -> None:
        if shutil.which("lintian") is None:
            pytest.skip("lintian is not installed")
        # It forgets its files in /tmp, wherever TMPDIR points.
        private = 'mount --bind "$1" /mnt && mount -t tmpfs tmp /tmp && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", private, "sh", built.deb.parent]
        command += ["lintian", "--allow-root", "--fail-on", "error", "--tag-display-limit", "0"]
        command += [f"/mnt/{built.deb.name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_it_works_at_once(self, installed: Package) -> None:
        """Group, directories and the socket are there, and a guest is saved and restored."""
        installed.run(
            "getent group mapsave\n"
            "test -d /etc/mapsave/jobs.d\n"
            "test -e /etc/systemd/system/sockets.target.wants/mapsaved.socket\n"
            "mapsaved --version\n"
            "mapsave --quiet save toy -o it.mapsave\n"
            "mapsave verify it.mapsave\n"
            "mapsave --quiet restore it.mapsave\n"
            "mapsave discard --in-use it.mapsave"
        )
        assert "/usr/local" not in installed.run("cat /usr/lib/systemd/system/mapsave*.service")

    def test_it_is_compiled(self, installed: Package) -> None:
        """Who is not root cannot keep what it compiles; the package holds nothing compiled."""
        counted = "find /usr/lib/mapsave/lib -name '*.%s' -xtype f | wc -l"
        assert installed.run(counted % "py") == installed.run(counted % "pyc")
        listing = subprocess.run(
            ["dpkg-deb", "--contents", installed.deb], capture_output=True, text=True, check=True
        )
        assert "__pycache__" not in listing.stdout

    def test_systemd_takes_the_units(self, installed: Package) -> None:
        said = installed.run(
            "cd /usr/lib/systemd/system; systemd-analyze verify mapsaved.* mapsave-*-all.service"
            " mapsave-job@nightly.service mapsave-job@nightly.timer"
        )
        assert said == ""

    def test_what_the_documentation_names_is_there(self, installed: Package) -> None:
        """Each path in the table of docs/install.md; and it says to install it as was done here."""
        page = (tree.ROOT / "docs/install.md").read_text()
        table = page.partition("| installed | is |")[2].partition("\n\n")[0]
        paths = set(re.findall(r"`(/[^`]+)`", table)) - {"/etc/mapsave/manager.yaml"}
        assert len(paths) > 20
        installed.run("ls -d " + " ".join(sorted(paths)))
        for text in (page, (tree.ROOT / "README.md").read_text()):
            assert "\napt install ./dist/mapsave_*.deb " in text

    def test_libvirt_guests_have_their_library(self, installed: Package) -> None:
        """It is the distribution's own, which apt recommends, and is compiled when it comes."""
        assert "hint: install libvirt-python" in installed.run("mapsave check libvirt:web01", 2)
        recommended = installed.run("dpkg-query -f '${Recommends}' -W mapsave")
        installed.run(f"apt-get install -q -y --no-install-recommends {recommended}")
        installed.run("ls /usr/lib/mapsave/lib/python3*/site-packages/__pycache__/libvirt.*.pyc")
        said = installed.run(
            "/usr/lib/mapsave/bin/python3 -I -c "
            "'import libvirt, libvirt_qemu, os; print(os.path.realpath(libvirt.__file__))'"
        )
        assert said == "/usr/lib/python3/dist-packages/libvirt.py\n"
        said = installed.run("mapsave check libvirt:web01 || true")
        assert "hint: install libvirt-python" not in said

    def test_in_the_middle_of_a_save_it_is_not_replaced(self, installed: Package) -> None:
        """The command goes on with the modules that it has begun with."""
        newer(installed)
        said = installed.run(
            f"{BEGIN}! dpkg -i newer.deb\n"
            "! dpkg --purge mapsave\n"
            "code=0; mapsave recover --pending || code=$?\n"
            "test $code = 8\n"
            "kill $saving\n"
            "code=0; wait $saving || code=$?\n"
            "test $code = 9\n"
            "mapsave recover --pending"
        )
        assert said.count("not removed or replaced") >= 2, said
        status = installed.run("dpkg-query -f '${Status} ${Version}' -W mapsave")
        assert " ok installed 0" in status

    def test_in_the_middle_of_a_save_of_another_user_it_is_not_replaced(
        self, installed: Package
    ) -> None:
        """Root's configuration knows nothing of it."""
        newer(installed)
        said = installed.run(
            f"{ALONE}{BEGIN}"
            "mapsave recover --pending\n"
            "! dpkg -i newer.deb\n"
            "! dpkg --purge mapsave\n"
            "kill $saving\n"
            "code=0; wait $saving || code=$?\n"
            "test $code = 9\n"
            "rm -r $at"
        )
        assert said.count("not removed or replaced") >= 2, said
        assert re.search(r"process \d+ of user 4711: in progress; journal /var/tmp/own/", said)

    def test_a_save_of_another_user_that_was_interrupted_keeps_it(self, installed: Package) -> None:
        """Its guest is paused, and root's own journals say nothing of it."""
        said = installed.run(
            f"{OF_A_USER}{BEGIN.replace('64K', '1M')}"
            "kill -9 $saving\n"
            "wait $saving || true\n"
            "mapsave recover --pending\n"
            "! dpkg --purge mapsave\n"
            "$as mapsave recover\n"
            "test -z $(find $at -name '*.jsonl')\n"
            "sed -i /^ursula:/d /etc/passwd\n"
            "rm -r $at"
        )
        assert "of user ursula: interrupted; journal /home/ursula/.local/state/mapsave" in said

    def test_with_guests_saved_it_is_upgraded(self, installed: Package) -> None:
        """Image and configuration are as they were, and the newer one restores the guest."""
        newer(installed)
        installed.run(
            "mapsave --quiet save toy -o toy.mapsave\n"
            "apt-get install -q -y ./newer.deb\n"
            "mapsave --quiet restore toy.mapsave\n"
            "find /usr/lib/mapsave -name '*.pyc' | grep -q .\n"
            "test -e /etc/mapsave/manager.yaml"
        )
        assert installed.run("dpkg-query -f '${Version}' -W mapsave").startswith("9")

    def test_a_purge_waits_for_a_paused_guest(self, installed: Package) -> None:
        """The journal of a save whose mapsave was killed keeps the package; images stay."""
        said = installed.run(
            f"{BEGIN.replace('64K', '1M')}kill -9 $saving\n"
            "! apt-get purge -q -y mapsave\n"
            "mapsave recover\n"
            "mapsave setup apparmor\n"
            # In an upgrade of the release; and RPM's of this package, when the new one is there.
            "/var/lib/dpkg/info/mapsave.prerm deconfigure\n"
            "test -e /etc/apparmor.d/usr.bin.mapsave\n"
            "/var/lib/dpkg/info/mapsave.postinst abort-deconfigure\n"
            "/var/lib/dpkg/info/mapsave.prerm 1\n"
            "find /usr/lib/mapsave -name '*.pyc' | grep -q .\n"
            "apt-get purge -q -y mapsave\n"
            f"{REMAINS}"
        )
        assert "save of slow: interrupted" in said
        left = said.rpartition("Purging configuration files for mapsave")[2]
        paths = {line for line in left.splitlines() if line.startswith("/")}
        images = "/var/lib/mapsave/images"
        # The interrupted save was completed, or rolled back.
        paths.discard(f"{images}/slow.mapsave")
        assert paths == {"/var/lib/mapsave", f"{images}/toy.mapsave"}, said


class TestDebian12(OfOneRelease):
    release = "12"


class TestDebian13(OfOneRelease):
    release = "13"

    def test_rpmlint_finds_no_error(self, built: Package) -> None:
        if shutil.which("rpmlint") is None:
            pytest.skip("rpmlint is not installed")
        command = ["rpmlint", "--config", tree.ROOT / "packaging/rpmlint.toml", built.rpm]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "packages and 0 specfiles checked; 0 errors" in done.stdout, done.stdout

    def test_the_rpm_installs_where_no_debian_tool_is(self, built: Package) -> None:
        if shutil.which("rpm") is None:
            pytest.skip("rpm is not installed")
        command = [*packages.ALONE, "sh", "-ec", RPM, "sh", built.chroot, built.rpm]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done
        assert not (built.chroot / "usr/lib/mapsave").exists()


def newer(installed: Package) -> None:
    """Put a package of a higher version, which is otherwise the same, into the chroot."""
    target = installed.chroot / "root/newer.deb"
    if target.exists():
        return
    content = installed.chroot / "root/newer"
    subprocess.run(["dpkg-deb", "-R", installed.deb, content], check=True)
    control = content / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: ", "Version: 9", control.read_text()))
    subprocess.run(["dpkg-deb", "-Znone", "-b", content, target], check=True, capture_output=True)
    shutil.rmtree(content)
