"""Derive the apt source of a suite's backports from the sources that this machine already has.

``python3 backports.py CODENAME [DIRECTORY [SUITE]]`` prints a deb822 source, or nothing if no
source of CODENAME's main archive is found in DIRECTORY (/etc/apt). SUITE is another suite of that
archive. Formats: sources.list(5). Runs before anything of ours is installed, so it uses the
standard library only.
"""

import re
import sys
from pathlib import Path

Source = dict[str, str]  # field names in lower case, as the field names of deb822 have no case

_KEPT = ("signed-by", "trusted", "architectures", "check-valid-until")
_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>.*)"
)


def derive(sources: list[Source], codename: str, suite: str | None = None) -> str | None:
    """Return the deb822 source of ``suite``, None if nothing leads to it.

    Without ``suite`` it is ``codename``-backports.

    Of several archives that have the suite, the one that also has its updates is the main one.
    """
    main = [
        source
        for source in sources
        if codename in source["suites"].split()
        and "main" in source["components"].split()
        and not source["uris"].startswith("cdrom:")
    ]
    updated = {
        source["uris"].rstrip("/")
        for source in sources
        if f"{codename}-updates" in source["suites"].split()
    }
    main.sort(key=lambda source: source["uris"].rstrip("/") not in updated)
    if not main:
        return None
    lines = [
        "Types: deb",
        f"URIs: {main[0]['uris']}",
        f"Suites: {suite or f'{codename}-backports'}",
        "Components: main",
        *(
            f"{field.title()}: {main[0][field]}".replace(": \n", ":\n")
            for field in _KEPT
            if field in main[0]
        ),
    ]
    return "\n".join(lines) + "\n"


def read(directory: Path) -> list[Source]:
    """Return the binary sources that are in force below ``directory``."""
    parts = directory / "sources.list.d"
    sources: list[Source] = []
    for path in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        if path.is_file():
            sources += one_line(path.read_text())
    for path in sorted(parts.glob("*.sources")):
        sources += deb822(path.read_text())
    return sources


def deb822(text: str) -> list[Source]:
    sources = []
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n[ \t]*\n", text):
        # A line that begins with a space continues the field: a key within Signed-By, for one.
        fields = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", paragraph, re.MULTILINE)
        source = {name.lower(): value.rstrip() for name, value in fields}
        complete = {"types", "uris", "suites", "components"} <= set(source)
        if complete and "deb" in source["types"].split() and source.get("enabled") != "no":
            sources.append(source)
    return sources


def one_line(text: str) -> list[Source]:
    sources = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(
            each.split("=", 1) for each in (match["options"] or "").split() if "=" in each
        )
        named = {"arch": "architectures"}
        sources.append(
            {
                "uris": match["uri"],
                "suites": match["suite"],
                "components": match["rest"],
                **{
                    named.get(name, name): value.replace(",", " ")
                    for name, value in options.items()
                },
            }
        )
    return sources


if __name__ == "__main__":
    etc = Path(sys.argv[2] if len(sys.argv) > 2 else "/etc/apt")
    found = derive(read(etc), sys.argv[1], *sys.argv[3:4])
    print(found or "", end="")
