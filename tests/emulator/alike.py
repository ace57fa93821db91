"""What emulator and QEMU tell, without what is a matter of time or place, to be compared."""

import re
from pathlib import Path
from typing import Any

from tests.emulator import helpers

# A part of the section of RAM that holds its end mark alone (migration/savevm.c, migration/ram.c):
# type, id, mark, and the footer with the id again.
_EMPTY_PASS = re.compile(rb"\x02(....)" + (16).to_bytes(8, "big") + rb"\x7e\1", re.DOTALL)


def normal(message: dict[str, Any]) -> str:
    """Return ``message`` without what differs from run to run: package, addresses, times."""
    message = {key: value for key, value in message.items() if key != "timestamp"}
    text = repr(_sorted(message))
    text = re.sub(r"'package': '[^']*'", "'package': '...'", text)
    return re.sub(r"0x00007[0-9a-f]{11}", "HVA", text)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def conversation(qmp: helpers.Qmp, lines: list[str]) -> list[str]:
    """Send ``lines`` one by one and return replies and events in order."""
    heard = [normal(qmp.greeting)]
    for line in lines:
        heard.append(f"> {line}")
        qmp.send(line.encode())
        while "event" in (message := qmp.read()):
            heard.append(normal(message))
        heard.append(normal(message))
    return heard


def compare(
    tmp_path: Path, lines: list[str], *arguments: str, negotiate: bool = True, oob: bool = False
) -> None:
    if oob:
        lines = ['{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}', *lines]
    with helpers.emulator(tmp_path, *arguments, negotiate=negotiate and not oob) as qmp:
        emulated = conversation(qmp, lines)
    with helpers.real_qemu(tmp_path, *arguments, negotiate=negotiate and not oob) as qmp:
        real = conversation(qmp, lines)
    assert emulated == real


def ending(qmp: helpers.Qmp) -> list[Any]:
    """Return what is told of a migration that has ended, without what is a matter of timing.

    That includes how many passes over RAM follow the first: QEMU makes further ones as soon as it
    has measured the bandwidth, 100 ms after the beginning.
    """
    result = qmp("query-migrate")
    trace = [word for word in qmp.trace() if word == "pass 1" or not word.startswith("pass ")]
    passes = result.get("ram", {}).pop("dirty-sync-count", None)
    if result["status"] == "completed" and passes is not None:
        assert passes >= 2
    result.get("ram", {}).pop("mbps", None)
    times = ("total-time", "setup-time", "downtime", "expected-downtime")
    counted = {key: value for key, value in result.items() if key not in times}
    volatile = ("pages-per-second", "downtime-bytes", "precopy-bytes", "transferred")
    for key in volatile:
        counted.get("ram", {}).pop(key, None)
    return [counted, sorted(result), qmp("query-status"), trace]


def without_clock(image: Path) -> bytes:
    """Return what is in an image, but for the clock's two counters and passes of nothing."""
    found = bytearray(_EMPTY_PASS.sub(b"", image.read_bytes()))
    at = found.index(b"\x05timer") + len(b"\x05timer") + 8
    found[at : at + 24] = bytes(24)
    return bytes(found)
