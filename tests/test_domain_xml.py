"""Domain XML, which may be made to hurt: name and uuid, and all that it names of its host."""

import time
import tracemalloc

import pytest
from mapsave import domain_resources, domain_xml, errors
from mapsave.domain_resources import Resource
from mapsave.domain_xml import Identity

UUID = "9d4fe0f4-0e4b-4a5f-8d2b-6a4c8f1d2e30"
GOOD = f"<domain><name>a</name><uuid>{UUID}</uuid></domain>"


@pytest.mark.parametrize(
    ("xml", "name"),
    [
        (GOOD, "a"),
        (f"<?xml version='1.0' encoding='latin-1'?>\n{GOOD.replace('>a<', '>ä<')}", "ä"),
        (GOOD.replace(">a<", ">a &amp; &#x3c;b&gt; \"'<"), "a & <b> \"'"),
        (GOOD.replace(">a<", "> a <"), " a "),
        (GOOD.replace("<domain>", "<domain><x><name>no</name></x><!-- <name>no</name> -->"), "a"),
        (GOOD.replace("</domain>", "<device><uuid>no</uuid></device></domain>"), "a"),
        (GOOD.replace(UUID, f"\n {UUID.upper()}\n"), "a"),
        (GOOD.replace(UUID, UUID.replace("-", "")), "a"),
        (GOOD.replace(">a<", f">{'n' * 200_000}<"), "n" * 200_000),
    ],
)
def test_identity(xml: str, name: str) -> None:
    assert domain_xml.identity(xml) == Identity(name, UUID)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("", "not XML"),
        ("<domain>", "not XML"),
        ("<domain/>junk", "not XML"),
        (GOOD.replace("a", "\0"), "not XML"),
        (GOOD.replace(">a<", ">\ud800<"), "not XML"),
        (GOOD.replace(">a<", ">&e;<"), "not XML"),
        (GOOD.replace(">a<", "><"), "names no domain"),
        (GOOD.replace("name", "title"), "names no domain"),
        ("<domain/>", "names no domain"),
        (GOOD.replace(UUID, UUID[1:]), "no valid uuid"),
        (GOOD.replace("uuid", "id"), "no valid uuid"),
        (GOOD.replace("domain", "domainsnapshot"), "domainsnapshot"),
        ("<d:domain xmlns:d='x'/>", "not a 'domain'"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]>" + GOOD.replace(">a<", ">&a;<"), "document type"),
        ("<domain>" * 300 + "</domain>" * 300, "deeper than"),
        (GOOD + " " * domain_xml.MAX_CHARACTERS, "characters"),
    ],
)
def test_what_identifies_no_domain(xml: str, words: str) -> None:
    with pytest.raises(errors.InvalidImage, match=words):
        domain_xml.identity(xml)


@pytest.mark.parametrize("hostile", ["deep", "wide", "attributes", "text"])
def test_memory_is_bounded(hostile: str) -> None:
    room = domain_xml.MAX_CHARACTERS - len(GOOD) - 40
    inside = {
        "deep": "<a>" * (room // 3),
        "wide": "<a/>" * (room // 4),
        "attributes": "<a " + " ".join(f"a{n:x}=''" for n in range(room // 10)) + "/>",
        "text": "x" * room,
    }[hostile]
    xml = GOOD.replace("</domain>", inside + "</domain>")
    tracemalloc.start()
    try:
        if hostile == "deep":
            with pytest.raises(errors.InvalidImage, match="deeper"):
                domain_xml.identity(xml)
        else:
            assert domain_xml.identity(xml).name == "a"
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


_QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def named(devices: str = "", rest: str = "", namespace: str = "") -> list[str]:
    inner = f"<name>a/b</name>{rest}<devices>{devices}</devices>"
    xml = f"<domain type='kvm' {namespace}>{inner}</domain>"
    return [str(each) for each in domain_resources.of_xml(xml)]


@pytest.mark.parametrize(
    ("devices", "wanted"),
    [
        ("<emulator>/tmp/evil</emulator>", ["program /tmp/evil"]),
        ("<emulator>evil</emulator>", ["program evil"]),
        ("<emulator>/usr/bin/<a>evil</a></emulator>", ["program /usr/bin/evil"]),
        ("<emulator>/usr/<!-- -->bin/<![CDATA[evil]]></emulator>", ["program /usr/bin/evil"]),
        (
            "<a:emulator xmlns:a='x'>/tmp/evil</a:emulator>",
            ["other emulator /tmp/evil", "program /tmp/evil"],
        ),
        ("<emulator/>", []),
        (
            "<interface type='ethernet'><script path='evil'/><downscript path='/x'/></interface>",
            ["program /x", "program evil"],
        ),
        (
            "<filesystem type='mount'><driver type='virtiofs'/><binary path='/tmp/fsd'/>"
            "<source dir='/etc'/><target dir='/mnt'/></filesystem>",
            ["path /etc", "program /tmp/fsd", "program virtiofsd"],
        ),
        ("<tpm model='tpm-tis'><backend type='emulator'/></tpm>", ["program swtpm"]),
        (
            "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            ["device /dev/tpm0"],
        ),
        (
            "<interface type='user'><backend type='passt' logFile='/l'/></interface>",
            ["path /l", "program passt"],
        ),
        ("<disk type='file'><source file='/a'/><target dev='vda'/></disk>", ["path /a"]),
        ("<disk type='file'><source file='relative'/></disk>", ["path relative"]),
        ("<disk type='block'><source dev='/dev/sda'/></disk>", ["device /dev/sda"]),
        (
            "<disk><source file='/a'/><backingStore><source file='/etc/shadow'/></backingStore>"
            "</disk>",
            ["path /a", "path /etc/shadow"],
        ),
        (
            "<disk type='volume'><source pool='p' volume='v'/></disk>",
            ["device pool p", "device volume v"],
        ),
        (
            "<disk type='network'><source protocol='nbd' name='x'><host name='h' port='1'/>"
            "</source></disk>",
            ["path nbd://host name=h port=1/x"],
        ),
        (
            "<disk type='nvme'><source type='pci' namespace='1'>"
            "<address domain='0' bus='1' slot='0' function='0'/></source></disk>",
            ["device address bus=1 domain=0 function=0 slot=0"],
        ),
        ("<interface type='bridge'><source bridge='br0'/></interface>", ["device bridge br0"]),
        ("<interface type='network'><source network='n'/></interface>", ["device network n"]),
        (
            "<interface type='direct'><source dev='eth0' mode='vepa'/></interface>",
            ["device dev eth0"],
        ),
        (
            "<interface type='vhostuser'><source type='unix' path='/s' mode='client'/></interface>",
            ["path /s"],
        ),
        (
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
            ["device /dev/vhost-vdpa-0"],
        ),
        (
            "<hostdev mode='subsystem' type='pci'><source><address bus='0x06'/></source></hostdev>",
            ["device host subsystem pci source address bus=0x06"],
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>",
            ["device host subsystem usb source vendor id=0x1"],
        ),
        (
            "<hostdev mode='capabilities' type='storage'><source><block>/dev/sdb</block></source>"
            "</hostdev>",
            ["device /dev/sdb", "device host capabilities storage source block"],
        ),
        ("<rng><backend model='random'>/dev/urandom</backend></rng>", []),
        ("<rng><backend model='random'>/dev/hwrng</backend></rng>", ["device /dev/hwrng"]),
        (
            "<rng><backend model='egd' type='unix'><source mode='connect' path='/e'/></backend>"
            "</rng>",
            ["path /e"],
        ),
        (
            "<rng><backend model='egd' type='tcp'><source mode='connect' host='h' service='1'/>"
            "</backend></rng>",
            ["other socket source host=h mode=connect service=1"],
        ),
        ("<serial type='file'><source path='/log' append='on'/></serial>", ["path /log"]),
        ("<serial type='pty'><log file='/log'/></serial>", ["path /log"]),
        ("<serial type='pty'/>", []),
        ("<channel type='unix'><source mode='bind' path='/s'/></channel>", ["path /s"]),
        ("<graphics type='vnc' socket='/s'/>", ["path /s"]),
        ("<graphics type='dbus' address='unix:path=/s'/>", ["path unix:path=/s"]),
        (
            "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
            ["device /dev/dri/renderD128"],
        ),
        (
            "<input type='evdev'><source dev='/dev/input/event1'/></input>",
            ["device /dev/input/event1"],
        ),
        (
            "<input type='passthrough'><source evdev='/dev/input/event1'/></input>",
            ["device /dev/input/event1"],
        ),
        (
            "<shmem name='../x'><model type='ivshmem-plain'/></shmem>",
            ["path ../x", "path /dev/shm/../x"],
        ),
        ("<memory model='nvdimm'><source><path>/n</path></source></memory>", ["path /n"]),
        ("<video><driver name='vhostuser'/></video>", ["program vhost-user-gpu"]),
        ("<watchdog model='i6300esb' action='dump'/>", ["other dump by watchdog"]),
        ("<lease><lockspace>a</lockspace><target path='/l'/></lease>", ["path /l"]),
        ("<anything new='/x'><to>come /y</to></anything>", ["path /x", "path come /y"]),
    ],
)
def test_devices(devices: str, wanted: list[str]) -> None:
    assert named(devices) == wanted


@pytest.mark.parametrize(
    ("rest", "wanted"),
    [
        (
            "<os><loader type='rom'>/l</loader><nvram template='/t'>/n</nvram></os>",
            ["path /l", "path /n", "path /t"],
        ),
        (
            "<os><kernel>/k</kernel><initrd>/i</initrd><cmdline>root=/dev/sda</cmdline></os>",
            ["path /i", "path /k"],
        ),
        ("<os><acpi><table type='slic'>/t</table></acpi></os>", ["path /t"]),
        (
            "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>",
            ["path /etc/shadow", "path opt/x"],
        ),
        ("<on_crash>coredump-destroy</on_crash>", ["other dump by on_crash"]),
        ("<on_crash>destroy</on_crash>", []),
        ("<seclabel type='dynamic' model='dac' relabel='yes'/>", []),
        ("<seclabel type='none'/>", ["other seclabel type=none"]),
        (
            "<seclabel type='static' model='dac'><label>+0:+0</label></seclabel>",
            ["other seclabel model=dac type=static +0:+0"],
        ),
        ("<metadata><x:y xmlns:x='x' z='/nothing'>/at all</x:y></metadata>", []),
        ("<title>/</title><description>/etc</description>", []),
        ("<resource><partition>/machine</partition></resource>", []),
    ],
)
def test_what_is_beside_the_devices(rest: str, wanted: list[str]) -> None:
    assert named(rest=rest) == wanted


def test_arguments_for_qemu() -> None:
    commandline = "<qemu:commandline>{}</qemu:commandline>"
    arguments = "<qemu:arg value='-chardev'/><qemu:arg value='file,path=x y'/>"
    waits = "<qemu:arg value='-incoming'/><qemu:arg value='defer'/>"
    wanted = ["other arguments -chardev 'file,path=x y'"]
    assert named(rest=commandline.format(arguments), namespace=_QEMU) == wanted
    assert named(rest=commandline.format(arguments + waits), namespace=_QEMU) == wanted
    assert named(rest=commandline.format(waits), namespace=_QEMU) == []
    env = commandline.format("<qemu:env name='LD_PRELOAD' value='evil.so'/>")
    assert named(rest=env, namespace=_QEMU) == ["other env name=LD_PRELOAD value=evil.so"]
    prefix = _QEMU.replace("qemu=", "q=")
    other = f"<q:commandline {prefix}><q:arg value='-s'/></q:commandline>"
    assert named(rest=other) == ["other arguments -s"]
    override = (
        "<qemu:override><qemu:device alias='x'><qemu:frontend>"
        "<qemu:property name='n' type='string' value='v'/>"
        "</qemu:frontend></qemu:device></qemu:override>"
    )
    assert "other property name=n type=string value=v" in named(rest=override, namespace=_QEMU)


@pytest.mark.parametrize(
    "xml",
    [
        "<?xml version='1.0' encoding='UTF-7'?><domain/>",
        '<?xml version="1.0" encoding="iso-8859-1"?><domain/>',
        "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>",
        "<domain>&a;</domain>",
        "<domain>",
        f"<domain>{'<a>' * 300}{'</a>' * 300}</domain>",
        f"<domain>{' ' * (4 << 20)}</domain>",
    ],
)
def test_what_libvirt_might_read_otherwise_is_refused(xml: str) -> None:
    with pytest.raises(errors.InvalidImage):
        domain_resources.of_xml(xml)


def test_as_libvirt_declares_it() -> None:
    assert domain_resources.of_xml("<?xml version='1.0' encoding='UTF-8'?><domain/>") == []


def test_the_largest_xml_costs_little() -> None:
    deep = "<loader>" * 200 + "x" * 2_000_000 + "</loader>" * 200
    wide = "<devices>" + "<disk><source file='/a'/></disk>" * 50_000 + "</devices>"
    began = time.process_time()
    assert domain_resources.of_xml(f"<domain>{wide}</domain>") == [Resource("path", "/a")]
    domain_resources.of_xml(f"<domain>{deep}</domain>")
    assert time.process_time() - began < 60
