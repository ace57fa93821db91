# For the quickstarts, which source it: a virtual environment with mapsave in it.
#
#   prepare [EXTRAS]    sets $venv and the array mapsave; EXTRAS such as "[fleet]"
#
# Needs $checkout, and fail().
venv="$checkout/.venv"
least='import sys; sys.exit(sys.version_info < (3, 11))'

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
install() { # EXTRAS
    local part
    copy=$(mktemp -d)
    trap 'rm -rf -- "$copy"' EXIT
    for part in manager policies pyproject.toml setup.cfg LICENSE README.md; do
        [ ! -e "$checkout/$part" ] || cp -R -- "$checkout/$part" "$copy/"
    done
    # tests/run.sh, which may share this environment, installs its own way again.
    rm -f -- "$venv/mapsave-installed"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$copy$1" ||
        fail "pip could not install mapsave (it needs the package index, or a mirror of it)"
    rm -rf -- "$copy"
    trap - EXIT
}

prepare() { # [EXTRAS]
    if [ -n "${MAPSAVE_VENV-}" ]; then
        venv=$MAPSAVE_VENV
        export PYTHONPATH="$checkout/manager" PYTHONDONTWRITEBYTECODE=1
        mapsave=("$venv/bin/python" -m mapsave)
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        ! "$venv/bin/python" -c "$least" 2>/dev/null; then
        echo "making the virtual environment $venv"
        make_venv
    fi
    echo "installing mapsave into $venv"
    install "${1-}"
    mapsave=("$venv/bin/mapsave")
}
