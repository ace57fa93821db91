#!/usr/bin/env bash
# Run the tests: bash tests/run.sh [STAGE...]; without a stage, all of them in this order.
# Installs what is missing, in a virtual environment of its own ($MAPSAVE_VENV, default .venv here).
# Says what it had to leave out; with CI=true nothing may be left out.
set -euo pipefail

stages=(lint unit emulator qemu libvirt faults service fleet outside mac)
STAGE_LIMIT=3600 # seconds

usage() {
    echo "usage: bash tests/run.sh [STAGE...]"
    echo "stages: ${stages[*]}"
}

chosen=()
for stage in "$@"; do
    case $stage in
    -h | --help)
        usage
        exit 0
        ;;
    esac
    if [[ " ${stages[*]} " != *" $stage "* ]] || [[ $stage == *" "* ]]; then
        echo "unknown stage: $stage" >&2
        usage >&2
        exit 2
    fi
    chosen+=("$stage")
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${stages[@]}")

venv=${MAPSAVE_VENV-}
[ -z "$venv" ] || venv=$(realpath -m -- "$venv")
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
checkout=$(pwd)
venv=${venv:-$checkout/.venv}
work=$(mktemp -d /tmp/msXXXXXX) # short, for the sockets of QEMUs that are below it
builder= # the process that boots machines for the last stages, as long as it is not waited for
trap 'end_builder; rm -rf -- "$work"' EXIT

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "no Python >= 3.11 found" >&2
    return 1
}

make_venv() {
    # Debian keeps what venv needs in a package of its own.
    if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null &&
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get -q update >&2 || true
        DEBIAN_FRONTEND=noninteractive apt-get -q -y install python3-venv >&2
    fi
    # Clear only what is an environment, never a directory that was named by mistake.
    if [ -e "$venv/pyvenv.cfg" ]; then
        "$PYTHON" -m venv --clear "$venv"
    else
        "$PYTHON" -m venv "$venv"
    fi
}

# libvirt-python is compiled against libvirt's library, which install.sh installs.
choose_extras() {
    local include
    include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    if [ -e "$include/Python.h" ] && command -v gcc >/dev/null &&
        pkg-config --atleast-version=11.2 libvirt 2>/dev/null; then
        echo libvirt,export,fleet,test,dev
    else
        echo export,fleet,test,dev
    fi
}

# The stamp holds what was installed: the dependencies, and the place of the checkout.
install_python() {
    local stamp="$venv/mapsave-installed" extras
    extras=$(choose_extras)
    { echo "$checkout" "$extras" && cat setup.cfg; } >"$work/stamp"
    if [ -x "$venv/bin/python" ] && cmp -s "$work/stamp" "$stamp"; then
        return
    fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
    echo "installing mapsave and its test tools into $venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".[$extras]"
    cp -- "$work/stamp" "$stamp"
}

# As an installed mapsave is. Where PYTHONDONTWRITEBYTECODE is set, or another user runs it, each of
# thousands of processes would compile for a tenth of a second.
compile_modules() {
    "$venv/bin/python" -m compileall -q -j 0 manager tests
}

# The disk and the boots of the stages outside and mac take longer than any other two: they begin as
# early as they can, beside all stages but lint.
start_builder() { # STAGE
    local stage booted=()
    [[ $1 != lint && ! -e "$MAPSAVE_VM_BOOTS" ]] || return 0
    for stage in outside mac; do
        [[ " ${chosen[*]} " != *" $stage "* ]] || booted+=("$stage")
    done
    if [ ${#booted[@]} -gt 0 ]; then
        mkdir -- "$MAPSAVE_VM_BOOTS"
        "$venv/bin/python" -m tests.vm.build "$MAPSAVE_VM_BOOTS" "${booted[@]}" \
            >"$work/boots.log" 2>&1 &
        builder=$!
    fi
}

await_builder() {
    local code=0
    [ -n "$builder" ] || return 0
    wait "$builder" || code=$?
    builder=
    [ $code -eq 0 ] || {
        echo "not all machines could be booted beforehand, status $code:"
        cat "$work/boots.log"
    } >&2
}

end_builder() {
    [ -n "$builder" ] || return 0
    kill "$builder" 2>/dev/null || true # it has ended already
    wait "$builder" || true
}

run_lint() {
    "$venv/bin/python" -m ruff check manager tests &&
        "$venv/bin/python" -m ruff format --check manager tests &&
        "$venv/bin/python" -m mypy &&
        build_site
}

# The documentation as a site: links, headings and the navigation are checked.
build_site() {
    "$venv/bin/python" -m sphinx -q -W --keep-going -c docs/site -d "$work/doctrees" . "$work/site"
}

run_pytest() { # PATH or option...
    local code=0
    timeout --foreground --kill-after=30 $STAGE_LIMIT \
        "$venv/bin/python" -m pytest -p tests.no_skips --basetemp "$work/t" "$@" || code=$?
    [ $code -ne 5 ] || echo "no tests: $*" >&2
    [ $code -ne 124 ] || echo "the tests did not end within $STAGE_LIMIT s: $*" >&2
    return $code
}

run_unit() {
    local ignored=() directory
    for directory in emulator qemu libvirt faults campaign service fleet evacuation outside mac bench; do
        ignored+=("--ignore=tests/$directory")
    done
    run_pytest -n 5 tests "${ignored[@]}"
}

# Boots what was not booted beside other stages: the first test waits for that.
run_booted() { # PATH
    run_pytest -o faulthandler_timeout=0 "$1"
}

run_outside() {
    local code=0
    # A worker has all tests of a file or class, in their order. Not loadgroup: pytest 9.2 does not
    # see the groups of pytest-xdist 3.8, which spreads the tests then.
    run_pytest -n 2 --dist loadscope tests/outside --ignore=tests/outside/test_machine.py || code=$?
    await_builder && run_booted tests/outside/test_machine.py || code=$?
    return $code
}

run_stage() { # STAGE
    case $1 in
    lint) run_lint ;;
    unit) run_unit ;;
    # They wait as much as they work: for guests, for libvirtd, for processes to end.
    qemu) run_pytest -n 6 tests/qemu tests/bench ;;
    faults) run_pytest -n 6 tests/faults tests/campaign ;;
    service) run_pytest -n 5 tests/service tests/evacuation ;; # these wait most of the time
    fleet) run_pytest -n 6 tests/fleet ;; # and these
    libvirt) run_pytest -n 6 tests/libvirt ;;
    emulator) run_pytest -n 3 tests/emulator ;;
    outside) run_outside ;;
    mac) await_builder && run_booted tests/mac ;;
    esac
}

export MAPSAVE_SKIPPED="$work/skipped" MAPSAVE_VM_BOOTS="$work/boots"
# Builds for the machine and for the chroots are the same ones.
export MAPSAVE_PACKAGES="$work/packages"
[ "${CI-}" != true ] || export MAPSAVE_NO_SKIPS=1
: >"$work/left-out"
: >"$MAPSAVE_SKIPPED"
PYTHON=$(find_python)
export PYTHON
if [ "${chosen[*]}" != lint ]; then
    bash tests/install.sh >"$work/left-out" || {
        cat "$work/left-out" >&2
        exit 1
    }
fi
install_python
compile_modules

failed=0
summary=()
for stage in "${chosen[@]}"; do
    echo "== $stage"
    begun=$SECONDS
    start_builder "$stage"
    if run_stage "$stage"; then
        result=ok
    else
        result=FAILED
        failed=1
    fi
    echo "== $stage: $result, $((SECONDS - begun)) s"
    summary+=("$stage $result ($((SECONDS - begun)) s)")
done

sed 's/^/left out: /' "$MAPSAVE_SKIPPED" >>"$work/left-out"
cat "$work/left-out"
left_out=$(wc -l <"$work/left-out")
printf -v line '%s, ' "${summary[@]}"
echo "tests: ${line}left out: $left_out, total $SECONDS s"
exit $failed
