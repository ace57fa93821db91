#!/usr/bin/env bash
# Install mapsave into a virtual environment, then save and restore a guest and prove that its RAM
# came back. Needs Python 3.11 or later with venv; uses QEMU 9.1 or later if there is one, else the
# emulated guest. Leaves nothing but the virtual environment.
#
#   bash examples/quickstart.sh
#
#   MAPSAVE_GUEST=qemu|emulator   insist on one kind of guest
#   MAPSAVE_VENV=DIRECTORY        use this virtual environment, which has what mapsave needs, with
#                                 mapsave as it is in this checkout; nothing is installed
set -euo pipefail

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
    printf 'quickstart: %s\n' "$@" >&2
    exit 1
}

. "$checkout/examples/quickstart/environment.sh"
prepare
exec "$venv/bin/python" -B "$checkout/examples/quickstart/demo.py" "${mapsave[@]}"
