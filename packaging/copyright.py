"""Print the file "copyright" of the package: mapsave's licence, and each library's.

``python3 copyright.py SITE-PACKAGES LICENSE``. It runs before anything is installed, so it uses the
standard library only.
"""

import sys
from importlib import metadata
from pathlib import Path

# Debian has these once for all packages, and wants them named, not repeated (policy, 12.5).
_COMMON = (
    ("Apache License", "Apache-2.0"),
    ("GNU LIBRARY GENERAL PUBLIC LICENSE", "LGPL-2"),
    ("GNU LESSER GENERAL PUBLIC LICENSE Version 3", "LGPL-3"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL-2.1"),
    ("GNU GENERAL PUBLIC LICENSE", "GPL-2"),
)


def licence(text: str) -> str:
    """Return the text of a licence, or where it is if Debian has it."""
    beginning = " ".join(text[:600].split())
    for title, name in _COMMON:
        if title.lower() in beginning.lower():
            return f"The text is in /usr/share/common-licenses/{name}.\n"
    return text.strip() + "\n"


def about(library: metadata.Distribution) -> str:
    """Return what a library says of its licence."""
    fields = library.metadata
    stated = fields.get("License-Expression") or fields.get("License") or ""
    stated = stated if "\n" not in stated and stated else "see below"
    lines = [f"{fields['Name']} {library.version}", f"Licence: {stated}", ""]
    for file in library.files or ():
        place = Path(str(library.locate_file(file)))
        named = file.stem.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS"))
        if ".dist-info" in file.parts[0] and named and place.is_file():
            lines += [f"{file.name}:", "", licence(place.read_text(errors="replace"))]
    return "\n".join(lines)


def main(site: str, own: str) -> None:
    """Print mapsave's licence, then those of what is in ``site`` beside it."""
    print("mapsave: Licence: Apache-2.0\n")
    print("Copyright: the mapsave developers\n")
    print(licence(Path(own).read_text()))
    print("The package holds these libraries, each with its own licence:\n")
    found = metadata.distributions(path=[site])
    for library in sorted(found, key=lambda each: each.metadata["Name"].lower()):
        if library.metadata["Name"] not in ("mapsave", "pip"):
            print("-" * 72 + "\n")
            print(about(library))


if __name__ == "__main__":
    main(*sys.argv[1:])
