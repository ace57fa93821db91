"""QEMU's command line is read as QEMU reads it, and written in the form that it had."""

import json

import pytest
from mapsave import qemu_options


@pytest.mark.parametrize(
    ("name", "value", "properties"),
    [
        ("object", "memory-backend-ram,id=m,size=1G", ("memory-backend-ram", "m", "1G")),
        ("object", "qom-type=memory-backend-ram,size=1G,id=m", ("memory-backend-ram", "m", "1G")),
        ("object", "memory-backend-file,id=a,,b,size=1G", ("memory-backend-file", "a,b", "1G")),
        (
            "object",
            '{"qom-type": "memory-backend-ram", "id": "m", "size": 4096}',
            ("memory-backend-ram", "m", "4096"),
        ),
    ],
)
def test_read(name: str, value: str, properties: tuple[str, str, str]) -> None:
    (found,) = qemu_options.options(["qemu", f"-{name}", value], name)
    assert (found.text("qom-type"), found.text("id"), found.text("size")) == properties
    assert found.at == 2
    again = found.replaced(found.properties)
    (same,) = qemu_options.options(["qemu", f"--{name}", again], name)
    assert same.properties == found.properties
    assert same.is_json is found.is_json


def test_switches_as_qemu_takes_them() -> None:
    words = ["-object", "memory-backend-memfd,id=m,share=off,hugetlb=yes,prealloc"]
    (found,) = qemu_options.options(words, "object")
    assert not found.is_on("share", default=True)
    assert found.is_on("hugetlb")
    assert found.is_on("prealloc")
    assert found.is_on("missing", default=True)


def test_what_is_changed_is_escaped() -> None:
    written = qemu_options.written("object", {"qom-type": "x", "path": "/a,b", "share": False})
    assert written == "x,path=/a,,b,share=off"
    (found,) = qemu_options.options(["-object", '{"id": "m"}'], "object")
    assert json.loads(found.replaced({"share": False, "size": 1})) == {"share": False, "size": 1}


def test_values_that_qemu_refuses_are_left_to_it() -> None:
    words = ["-object", "{broken", "-object", "[1]", "-m", "4G", "-object"]
    found = list(qemu_options.options(words, "object", "m"))
    assert [each.name for each in found] == ["object", "m"]
    assert qemu_options.switches(words) == {"object", "m"}
