#!/usr/bin/env bash
# Install what the tests run beside Python: QEMU and the tools that make file systems and guests.
# On Debian and its kin, as root; elsewhere it says what is missing. Done before: nothing to do.
# With CI=true nothing may be missing.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

least=9.1 # the first QEMU that saves behind a header through descriptors
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# package:command, for a command tells on any system whether it is there
tools=(
    qemu-system-x86:qemu-system-x86_64 qemu-utils:qemu-img
    xfsprogs:mkfs.xfs e2fsprogs:mkfs.ext4 busybox-static:busybox cpio:cpio kmod:modprobe
    apparmor:apparmor_parser
)

at_least() { # VERSION LEAST
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

qemu_version() {
    qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p'
}

qemu_is_good() {
    local version
    version=$(qemu_version) || true
    [ -n "$version" ] && at_least "$version" "$least"
}

missing() { # one package a line
    local tool
    for tool in "${tools[@]}"; do
        command -v "${tool#*:}" >/dev/null || echo "${tool%%:*}"
    done
    qemu_is_good || echo qemu-system-x86
}

# Print the newest QEMU that apt knows, whatever its suite.
known_qemu() {
    apt-cache madison qemu-system-x86 2>/dev/null |
        sed -n 's/^[^|]*| *\([0-9]*:\)\{0,1\}\([0-9.]*\)[^|]*|.*/\2/p' | sort -V | tail -n 1
}

apt_qemu() {
    local candidate
    candidate=$(apt-cache policy qemu-system-x86 2>/dev/null |
        sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p')
    [ -n "$candidate" ] && at_least "$candidate" "$least"
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@" >&2
}

# Set the array suite to what apt-get needs to take a QEMU that is new enough.
choose_suite() {
    local codename source newest etc parts
    suite=()
    apt_qemu && return
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    newest=$(known_qemu)
    if [ -z "$newest" ] || ! at_least "$newest" "$least"; then
        eval "$(apt-config shell etc Dir::Etc/d parts Dir::Etc::sourceparts/d)"
        source=$(python3 "$here/backports.py" "$codename" "$etc")
        if [ -z "$source" ]; then
            echo "no apt source of the main archive to derive $codename-backports from" >&2
            return 1
        fi
        printf '%s\n' "# Made by tests/install.sh of mapsave." "$source" \
            >"$parts/mapsave-backports.sources"
        apt update || return 1
        apt_qemu && return
        newest=$(known_qemu)
        [ -n "$newest" ] && at_least "$newest" "$least" || return 1
    fi
    # The whole suite, so that firmware of the same age comes along.
    suite=(-t "$codename-backports")
}

install_missing() { # PACKAGE...
    local package rest=() suite
    apt-cache show "$1" >/dev/null 2>&1 || apt update || true
    for package in "$@"; do
        [[ $package == qemu-* ]] || rest+=("$package")
    done
    if [ ${#rest[@]} -gt 0 ]; then
        apt install --no-install-recommends "${rest[@]}" || true
    fi
    if [[ " $* " == *" qemu-"* ]]; then
        choose_suite || suite=()
        apt install --no-install-recommends ${suite[@]+"${suite[@]}"} \
            qemu-system-x86 qemu-utils || true
    fi
}

mapfile -t wanted < <(missing | sort -u)
if [ ${#wanted[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${wanted[*]}" >&2
    install_missing "${wanted[@]}"
    mapfile -t wanted < <(missing | sort -u)
fi
for package in ${wanted[@]+"${wanted[@]}"}; do
    if [ "$package" = qemu-system-x86 ]; then
        version=$(qemu_version) || true
        echo "left out: a real QEMU >= $least (here: ${version:-none})"
    else
        echo "left out: $package is not installed"
    fi
done
if [ ${#wanted[@]} -gt 0 ] && [ "${CI-}" = true ]; then
    echo "with CI=true nothing may be left out" >&2
    exit 1
fi
