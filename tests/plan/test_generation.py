"""Each clone gets a VM generation ID of its own, in the form that the option has."""

import json
import uuid

from mapsave.plan import generation

_OLD = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def test_a_new_one_each_time() -> None:
    argv = ("qemu-system-x86_64", "-device", f"vmgenid,guid={_OLD},id=g", "-device", "e1000,id=n")
    first, second = generation.renewed(argv), generation.renewed(argv)
    assert first[:2] + first[3:] == argv[:2] + argv[3:]
    driver, guid, name = first[2].split(",")
    assert (driver, name) == ("vmgenid", "id=g")
    assert uuid.UUID(guid.removeprefix("guid=")).version == 4
    assert len({argv[2], first[2], second[2]}) == 3


def test_as_json_and_where_none_is_given() -> None:
    device = json.dumps({"driver": "vmgenid", "id": "g"})
    (*_, found) = generation.renewed(("qemu-system-x86_64", "-device", device))
    assert uuid.UUID(json.loads(found).pop("guid")).version == 4
    assert json.loads(found)["id"] == "g"


def test_without_such_a_device() -> None:
    argv = ("qemu-system-x86_64", "-device", "e1000,id=vmgenid", "-smbios", "vmgenid")
    assert generation.renewed(argv) == argv
