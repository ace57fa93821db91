"""What is read from and changed in domain XML; libvirt's own output is in ``tests/libvirt``."""

from xml.etree import ElementTree

import pytest
from mapsave import errors
from mapsave.monitor import definition

# As libvirt 11.3 formats a live definition.
LIVE = """<domain type='kvm' id='7'>
  <name>a &lt;cpu&gt; &amp; b</name>
  <uuid>63485de2-3445-42e8-ae99-094ba34fae00</uuid>
  <metadata>
    <x:cpu xmlns:x="urn:x">not this one: ü</x:cpu>
  </metadata>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>qemu64</model>
    <feature policy='require' name='hypervisor'/>
    <numa>
      <cell id='0' cpus='0' memory='65536' unit='KiB'/>
    </numa>
  </cpu>
  <devices>
    <disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <hostdev mode='subsystem' type='pci'/>
  </devices>
  <seclabel type='dynamic' model='selinux' relabel='yes'>
    <label>system_u:system_r:svirt_t:s0:c1,c2</label>
    <imagelabel>system_u:object_r:svirt_image_t:s0:c1,c2</imagelabel>
  </seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'>
    <imagelabel>+0:+0</imagelabel>
  </seclabel>
</domain>
"""
SAVED = """<domain type='kvm'>
  <name>a &lt;cpu&gt; &amp; b</name>
  <cpu mode='host-model' check='partial'>
    <numa>
      <cell id='0' cpus='0' memory='65536' unit='KiB'/>
    </numa>
  </cpu>
</domain>
"""
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def arguments(xml: str) -> list[str]:
    """Return the arguments that libvirt would append to QEMU's command line."""
    found = ElementTree.fromstring(xml).iterfind(f"./{QEMU}commandline/{QEMU}arg")
    return [argument.attrib["value"] for argument in found]


def test_reads_a_live_definition() -> None:
    assert definition.image_label(LIVE, "selinux") == "system_u:object_r:svirt_image_t:s0:c1,c2"
    assert definition.image_label(LIVE, "dac") == "+0:+0"
    assert definition.image_label(LIVE, "apparmor") is None
    assert definition.disks(LIVE) == ["vda", "sda"]
    assert definition.host_devices(LIVE) == ["pci"]


def test_internal_snapshots_need_a_qcow2_disk() -> None:
    assert not definition.takes_internal_snapshots(LIVE)
    qcow2 = LIVE.replace("<target dev='vda'", "<driver name='qemu' type='qcow2'/><target dev='vda'")
    assert definition.takes_internal_snapshots(qcow2)


def test_cookie_holds_the_cpu_as_it_came_out() -> None:
    cookie = ElementTree.fromstring(definition.cookie(LIVE))
    assert cookie.tag == "cookie"
    cpu = cookie.find("./cpu")
    assert cpu is not None
    assert cpu.get("check") == "full"
    assert cpu.findtext("./model") == "qemu64"
    assert cpu.find("./numa") is None
    assert cookie.find("./slirpHelper") is not None


def test_cookie_of_a_domain_without_a_cpu_and_with_a_user_network() -> None:
    xml = "<domain><devices><interface type='user'/></devices></domain>"
    assert list(ElementTree.fromstring(definition.cookie(xml))) == []
    other = xml.replace("'user'/>", "'user'><backend type='passt'/></interface>")
    assert [child.tag for child in ElementTree.fromstring(definition.cookie(other))] == [
        "slirpHelper"
    ]


def test_waiting_adds_incoming_and_takes_the_cookies_cpu() -> None:
    waiting = definition.waiting(SAVED, definition.cookie(LIVE))
    assert arguments(waiting) == ["-incoming", "defer"]
    cpus = ElementTree.fromstring(waiting).findall("./cpu")
    assert [cpu.get("mode") for cpu in cpus] == ["custom"]
    assert [cell.get("memory") for cell in cpus[0].iterfind("./numa/cell")] == ["65536"]


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("", ""),
        ("<os/>", "<clock offset='utc'/>"),
        ("\n  ", "\n  <clock offset='utc'>\n<timer name='rtc'/></clock>"),
    ],
)
@pytest.mark.parametrize("cpu", ["<cpu mode='host-passthrough' check='none'/>", "<cpu>/></cpu>"])
def test_waiting_takes_the_cpu_and_nothing_behind_it(before: str, behind: str, cpu: str) -> None:
    xml = f"<domain>{before}{{}}{behind}</domain>"
    cookie = "<cookie><cpu><model>qemu64</model></cpu></cookie>"
    expected = definition.waiting(xml.format("<cpu><model>qemu64</model></cpu>"), None)
    assert definition.waiting(xml.format(cpu), cookie) == expected


def test_waiting_leaves_everything_else_to_the_letter() -> None:
    waiting = definition.waiting(LIVE, None)
    start, end = waiting.index("<mapsave:commandline"), waiting.rindex("</domain>")
    assert waiting[:start] + waiting[end:] == LIVE


@pytest.mark.parametrize(
    "text", ["<domain><a/></domain >", "<domain a='>'>\n</domain>\n<!-- </domain> -->"]
)
def test_waiting_finds_the_end_of_any_text(text: str) -> None:
    assert arguments(definition.waiting(text, None)) == ["-incoming", "defer"]


def test_own_arguments_of_a_domain_stay() -> None:
    own = (
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        "  <qemu:commandline>\n"
        "    <qemu:arg value='-incoming-like'/>\n"
        "  </qemu:commandline>\n"
        "</domain>\n"
    )
    assert arguments(definition.waiting(own, None)) == ["-incoming-like", "-incoming", "defer"]
    assert definition.without_restore(own) == own


def test_without_restore_takes_out_what_libvirt_made_of_it() -> None:
    live = LIVE.replace(
        "</domain>",
        "  <qemu:commandline>\n"
        "    <qemu:arg value='-incoming'/>\n"
        "    <qemu:arg value='defer'/>\n"
        "  </qemu:commandline>\n"
        "</domain>",
    )
    assert definition.without_restore(live) == LIVE
    both = live.replace(
        "<qemu:arg value='-inc", "<qemu:arg value='-S'/>\n    <qemu:arg value='-inc"
    )
    left = definition.without_restore(both)
    assert "-incoming" not in left
    assert "<qemu:arg value='-S'/>" in left


@pytest.mark.parametrize(
    "text", ["", "<domain>", "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "no XML"]
)
def test_what_is_no_xml_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidImage):
        definition.waiting(text, None)
    with pytest.raises(errors.InvalidImage):
        definition.waiting("<domain><cpu/></domain>", text or "<")


def nested(depth: int, inner: str = "") -> str:
    return "<a>" * depth + inner + "</a>" * depth


def test_xml_deeper_than_libvirt_reads_is_refused() -> None:
    plain = "<domain><cpu/></domain>"
    allowed = f"<cookie><cpu>{nested(254)}</cpu></cookie>"
    assert nested(254) in definition.waiting(plain, allowed).replace("<a />", "<a></a>")
    for depth in (255, 5000, 100_000):
        with pytest.raises(errors.InvalidImage, match=r"the cookie .* deeper than 256"):
            definition.waiting(plain, f"<cookie><cpu>{nested(depth)}</cpu></cookie>")
        with pytest.raises(errors.InvalidImage, match=r"the domain XML .* deeper than 256"):
            definition.waiting(f"<domain>{nested(depth + 1)}</domain>", None)


@pytest.mark.parametrize("kind", ["memory-backend-file", "memory-backend-ram"])
def test_the_arguments_of_an_instant_restore_are_taken_out(kind: str) -> None:
    """As libvirt writes them; a backend of the user's own is left."""
    added = ["-object", f"{kind},id=Pc.ram,size=1,mem-path=/a'b", "-machine"]
    waiting = definition.waiting(LIVE, None, [*added, "memory-backend=Pc.ram"])
    assert arguments(waiting) == [*added, "memory-backend=Pc.ram", "-incoming", "defer"]
    own = ["-object", "memory-backend-file,id=m,size=1,mem-path=/a"]
    for before in ([], own):
        words = [*before, *added, "memory-backend=Pc.ram", "-incoming", "defer"]
        lines = "\n".join(
            f"    <qemu:arg value='{word.replace(chr(39), '&apos;')}'/>" for word in words
        )
        text = f"  <qemu:commandline>\n{lines}\n  </qemu:commandline>\n</domain>"
        left = definition.without_restore(LIVE.replace("</domain>", text))
        assert "Pc.ram" not in left and "-incoming" not in left
        assert ("id=m," in left) == bool(before)
        assert before or left == LIVE


def test_the_user_of_a_domains_qemu() -> None:
    labels = "<baselabel type='kvm'>+64055:+106</baselabel><baselabel type='qemu'>+7:+7</baselabel>"
    dac = f"<secmodel><model>dac</model>{labels}</secmodel>"
    host = f"<capabilities><host><secmodel><model>selinux</model></secmodel>{dac}</host>"
    told = f"{host}</capabilities>"
    assert definition.qemu_user(LIVE, told) == "64055"
    assert definition.qemu_user("<domain type='qemu'/>", told) == "7"
    own = "<seclabel type='static' model='dac'><label>web:web</label></seclabel>"
    assert definition.qemu_user(f"<domain type='kvm'>{own}</domain>", told) == "web"
    assert definition.qemu_user(LIVE, "<capabilities><host/></capabilities>") is None


def test_labels_that_a_definition_names() -> None:
    def of(seclabel: str) -> tuple[str | None, str | None]:
        return definition.seclabel(f"<domain type='kvm'>{seclabel}</domain>", "selinux")

    label = "system_u:system_r:svirt_t:s0:c1,c2"
    static = f"<seclabel type='static' model='selinux'><label>{label}</label></seclabel>"
    other = "<seclabel type='static' model='dac'><label>web:web</label></seclabel>"
    assert of(other + static) == ("static", label)
    # A live one has the label that libvirt chose, which is another the next time.
    assert of(static.replace("static", "dynamic")) == ("dynamic", None)
    assert of("<seclabel type='none'/>") == ("none", None)
    assert of(other) == (None, None)


def test_models_that_libvirt_confines_by() -> None:
    models = "".join(f"<secmodel><model>{each}</model></secmodel>" for each in ("apparmor", "dac"))
    told = f"<capabilities><host>{models}</host></capabilities>"
    assert definition.security_models(told) == ["apparmor", "dac"]
