#!/usr/bin/env bash
# Run tests against the QEMU of the distribution's unstable suite (Debian; nothing is installed):
#     bash tests/newer_qemu.sh [PATH or option of pytest...]     default: tests/qemu
# It is unpacked with all that it needs, its C library included, into a temporary directory, or
# into $MAPSAVE_NEWER_QEMU, where it stays and is used again.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=${MAPSAVE_VENV:-.venv}/bin/python
if [ ! -x "$python" ]; then
    echo "no $python: run 'bash tests/run.sh lint' first, or set MAPSAVE_VENV" >&2
    exit 1
fi
work=$(mktemp -d /tmp/msXXXXXX) # short, for the sockets of QEMUs that are below it
trap 'rm -rf -- "$work"' EXIT
root=$(realpath -m -- "${MAPSAVE_NEWER_QEMU:-$work/root}")
qemu=$root/bin/qemu-system-x86_64

# An apt of its own: lists, cache and a system on which nothing is installed, so that every
# dependency is downloaded.
apt() {
    apt-get -q -y -o Dir::Etc="$work/apt" -o Dir::State="$work/state" -o Dir::Cache="$work/cache" \
        -o Dir::State::status="$work/status" -o APT::Sandbox::User=root "$@" >&2
}

write_source() {
    local uri
    # The archive that this machine's own packages come from.
    uri=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian //p' | grep -v '^Backports' | head -n 1)
    if [ -z "$uri" ]; then
        echo "no apt source of Debian's main archive to derive its unstable suite from" >&2
        return 1
    fi
    mkdir -p "$work/apt/apt.conf.d" "$work/apt/preferences.d" "$work/apt/trusted.gpg.d" \
        "$work/state/lists/partial" "$work/cache/archives/partial"
    : >"$work/status"
    printf '%s\n' "Types: deb" "URIs: $uri" "Suites: unstable" "Components: main" \
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" >"$work/apt/unstable.sources"
    mkdir "$work/apt/sources.list.d"
    mv "$work/apt/unstable.sources" "$work/apt/sources.list.d"
}

unpack() {
    local package
    write_source
    apt update
    apt install --download-only --no-install-recommends qemu-system-x86 patchelf
    mkdir -p -- "$root"
    for package in "$work"/cache/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -rf -- "$work/cache"
}

# Let it load its own C library and libraries, from wherever it is started, and its own firmware and
# modules: Debian's QEMU looks for these below /usr, where those of another version may be.
make_independent() {
    local loader library_path real=$root/usr/bin/qemu-system-x86_64
    loader=$(find "$root/usr/lib" -name 'ld-linux*.so.*' | head -n 1)
    library_path=$(find "$root/usr/lib" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
    "$loader" --library-path "$library_path" "$root/usr/bin/patchelf" \
        --set-interpreter "$loader" --force-rpath --set-rpath "$library_path" "$real"
    mkdir -- "$root/bin"
    cat >"$qemu" <<END
#!/bin/sh
export QEMU_MODULE_DIR='$(find "$root/usr/lib" -path '*/qemu/accel-*.so' -printf '%h\n' | head -n 1)'
exec '$real' -L '$root/usr/share/qemu' -L '$root/usr/share/seabios' -L '$root/usr/lib/ipxe/qemu' "\$@"
END
    chmod +x "$qemu"
}

if [ ! -x "$qemu" ]; then
    unpack
    make_independent
fi
"$qemu" --version
[ $# -gt 0 ] || set -- tests/qemu
export MAPSAVE_TEST_QEMU=$qemu
"$python" -m pytest -p tests.no_skips --basetemp "$work/t" -n 4 "$@"
