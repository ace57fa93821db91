"""Name and uuid out of domain XML, which may be made to hurt."""

import tracemalloc

import pytest
from mapsave import domain_xml, errors
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
