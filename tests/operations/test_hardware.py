"""Two machines compared as their QEMUs tell them."""

from typing import Any

import pytest
from mapsave import errors
from mapsave.operations import cpuid, hardware

_SAVED: dict[str, Any] = {
    "target": "x86_64",
    "model": "Haswell-x86_64-cpu",
    "vcpus": ["core-id=0,node-id=0", "core-id=1,node-id=0"],
    "topology": {"cores": 2, "sockets": 1},
    "features": {"1.ECX": 0b11, "7.0.EBX": 1 << 5},
    "processor": {"level": 13, "hv-time": False},
    "machine": {"hpet": True, "smm": "auto"},
}


class _Silent:
    """The monitor of a QEMU without processors."""

    async def processors(self) -> list[dict[str, Any]]:
        return []


def told(register: str, leaf: int, features: int, **more: int) -> dict[str, Any]:
    return {"cpuid-register": register, "cpuid-input-eax": leaf, "features": features, **more}


def test_words_are_named_by_leaf_subleaf_and_register() -> None:
    subleaf: dict[str, Any] = {"cpuid-input-ecx": 0}
    found = cpuid.words([told("ECX", 1, 3), told("EBX", 7, 32, **subleaf)])
    assert found == {"1.ECX": 3, "7.0.EBX": 32}
    assert list(cpuid.words([told("EDX", 0x80000001, 1)])) == ["80000001.EDX"]


def test_features_by_name() -> None:
    here = {"1.ECX": 0b101, "D.1.EAX": 1 << 3}
    missing, added = cpuid.compared(_SAVED["features"], here)
    assert missing == ["pclmulqdq", "avx2"]
    assert added == ["dtes64", "CPUID D.1.EAX bit 3"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "Nehalem-x86_64-cpu"}, "processor 'Haswell-x86_64-cpu', here 'Nehalem-"),
        ({"vcpus": _SAVED["vcpus"][:1]}, "2 vCPUs, here 1"),
        ({"topology": {"cores": 1, "sockets": 1}}, "topology cores=2, here 1"),
        (
            {"vcpus": ["core-id=0,node-id=0", "core-id=1,node-id=1"]},
            "vCPU 1 at core-id=1,node-id=0",
        ),
        ({"features": {"1.ECX": 0b11}}, "features missing here: avx2"),
        ({"features": {**_SAVED["features"], "1.EDX": 1}}, "features only here: fpu"),
        ({"processor": {"level": 13, "hv-time": True}}, "processor hv-time=off, here on"),
        ({"machine": {"hpet": False, "smm": "auto"}}, "machine option hpet=on, here off"),
    ],
)
def test_each_difference_is_told(changed: dict[str, Any], words: str) -> None:
    (text,) = hardware.differences(_SAVED, {**_SAVED, **changed})  # type: ignore[typeddict-item]
    assert words in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"machine": {"hpet": True, "smm": "off"}}, "not compared: smm"),
        ({"machine": {"hpet": True}}, None),  # an option that this version of QEMU does not have
        ({"features": None}, "one QEMU does not report them"),
    ],
)
def test_what_is_not_told_is_no_difference(changed: dict[str, Any], words: str | None) -> None:
    here: Any = {key: value for key, value in {**_SAVED, **changed}.items() if value is not None}
    assert list(hardware.differences(_SAVED, here)) == []  # type: ignore[arg-type]
    warnings = list(hardware.untold(_SAVED, here))  # type: ignore[arg-type]
    assert [words in each for each in warnings if words] == ([True] if words else [])


async def test_a_destination_without_processors() -> None:
    session: Any = _Silent()
    here = await hardware.query(session)
    assert hardware.compare(here, {}, force=False) == []
    with pytest.raises(errors.DestinationMismatch, match="2 vCPUs, here 0"):
        hardware.compare(here, {"hardware": _SAVED}, force=False)  # type: ignore[typeddict-item]
