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
venv="$checkout/.venv"
least='import sys; sys.exit(sys.version_info < (3, 11))'

fail() {
    printf 'quickstart: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c "$least" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    python=$(find_python) || fail "no Python 3.11 or later found on PATH"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$(command -v "$python") cannot make virtual environments with pip (no ensurepip)" \
        "on Debian and Ubuntu: apt install python3-venv"
    "$python" -m venv "$venv" || fail "cannot make the virtual environment $venv"
}

# Install from a copy: setuptools writes beside the sources.
install() {
    local copy part
    copy=$(mktemp -d)
    trap 'rm -rf -- "$copy"' EXIT
    for part in manager policies pyproject.toml setup.cfg LICENSE README.md; do
        [ ! -e "$checkout/$part" ] || cp -R -- "$checkout/$part" "$copy/"
    done
    # tests/run.sh, which may share this environment, installs its own way again.
    rm -f -- "$venv/mapsave-installed"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$copy" ||
        fail "pip could not install mapsave (it needs the package index, or a mirror of it)"
    rm -rf -- "$copy"
    trap - EXIT
}

if [ -n "${MAPSAVE_VENV-}" ]; then
    venv=$MAPSAVE_VENV
    export PYTHONPATH="$checkout/manager" PYTHONDONTWRITEBYTECODE=1
    mapsave=("$venv/bin/python" -m mapsave)
else
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        ! "$venv/bin/python" -c "$least" 2>/dev/null; then
        echo "making the virtual environment $venv"
        make_venv
    fi
    echo "installing mapsave into $venv"
    install
    mapsave=("$venv/bin/mapsave")
fi

exec "$venv/bin/python" -B "$checkout/examples/quickstart/demo.py" "${mapsave[@]}"
