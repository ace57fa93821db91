#!/usr/bin/env bash
# Install what the tests run beside Python: QEMU, libvirt, and the tools that make file systems and
# guests. On Debian and its kin, as root; elsewhere it says what is missing. Done before: nothing to
# do. With CI=true nothing may be missing. $PYTHON is the one that libvirt-python is compiled for.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

least_qemu=9.1     # the first QEMU that saves behind a header through descriptors
least_libvirt=11.2 # the first libvirt that has this format
python=${PYTHON-python3}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
policy=/usr/sbin/policy-rc.d
made_here="# Made by tests/install.sh of mapsave."

# package:command, for a command tells on any system whether it is there; or package:/file
tools=(
    qemu-utils:qemu-img
    xfsprogs:mkfs.xfs e2fsprogs:mkfs.ext4 btrfs-progs:mkfs.btrfs
    busybox-static:busybox cpio:cpio kmod:modprobe groff-base:groff
    fonts-dejavu-core:/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
    chromium:chromium chromium-driver:chromedriver cockpit-bridge:cockpit-bridge
    cockpit-ws:/usr/lib/cockpit/cockpit-ws cockpit-system:/usr/share/cockpit/shell/index.html
    apparmor:apparmor_parser mmdebstrap:mmdebstrap systemd:systemd-analyze
    prometheus:promtool openssl:openssl tmux:tmux zstd:zstd age:age openssh-client:ssh-keygen
    postgresql:/usr/lib/postgresql
    gdb:gdb python3-drgn:/usr/lib/python3/dist-packages/drgn
    binutils:strip lintian:lintian rpmlint:rpmlint rpm:rpm
)
libvirt_tools=(
    libvirt-daemon:libvirtd libvirt-daemon-driver-qemu:virt-qemu-run libvirt-clients:virsh
)

at_least() { # VERSION LEAST
    [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

absent() { # PACKAGE:COMMAND...; one package a line
    local tool
    for tool in "$@"; do
        command -v "${tool#*:}" >/dev/null || [ -e "${tool#*:}" ] || echo "${tool%%:*}"
    done
}

qemu_version() {
    qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p' || true
}

libvirt_version() {
    libvirtd --version 2>/dev/null | sed -n '1s/.* \([0-9.]*\)$/\1/p' || true
}

libvirt_is_good() {
    [ -z "$(absent "${libvirt_tools[@]}")" ] && at_least "$(libvirt_version)" "$least_libvirt"
}

# What compiling libvirt-python takes, one package a line.
missing_to_compile() {
    local include
    absent gcc:gcc pkg-config:pkg-config
    # Without recommended packages gcc comes without the C library's headers.
    echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || echo libc6-dev
    pkg-config --atleast-version="$least_libvirt" libvirt 2>/dev/null || echo libvirt-dev
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null) ||
        true
    [ -e "$include/Python.h" ] || echo "${python##*/}-dev"
}

missing() { # one package a line
    absent "${tools[@]}"
    at_least "$(qemu_version)" "$least_qemu" || echo qemu-system-x86
    libvirt_is_good || printf '%s\n' "${libvirt_tools[@]%%:*}"
    missing_to_compile
}

# Print the newest version that apt knows, whatever its suite.
known() { # PACKAGE
    apt-cache madison "$1" 2>/dev/null |
        sed -n 's/^[^|]*| *\([0-9]*:\)\{0,1\}\([0-9.]*\)[^|]*|.*/\2/p' | sort -V | tail -n 1
}

candidate_is_good() { # PACKAGE LEAST
    local candidate
    candidate=$(apt-cache policy "$1" 2>/dev/null |
        sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p')
    at_least "$candidate" "$2"
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@" >&2
}

# Set the array suite to what apt-get needs to take a version of PACKAGE that is new enough.
choose_suite() { # PACKAGE LEAST
    local codename source etc parts
    suite=()
    candidate_is_good "$1" "$2" && return
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    if ! at_least "$(known "$1")" "$2"; then
        eval "$(apt-config shell etc Dir::Etc/d parts Dir::Etc::sourceparts/d)"
        source=$(python3 "$here/backports.py" "$codename" "$etc")
        if [ -z "$source" ]; then
            echo "no apt source of the main archive to derive $codename-backports from" >&2
            return 1
        fi
        printf '%s\n' "$made_here" "$source" \
            >"$parts/mapsave-backports.sources"
        apt update || return 1
        candidate_is_good "$1" "$2" && return
        at_least "$(known "$1")" "$2" || return 1
    fi
    # The whole suite, so that firmware of the same age comes along.
    suite=(-t "$codename-backports")
}

# Have no service started that packages bring: the tests start their own. A signal is heeded when
# apt-get has ended, and not before the policy is gone again.
start_no_services() {
    [ ! -e "$policy" ] || grep -qsxF "$made_here" "$policy" || return 0 # an administrator's
    trap 'rm -f -- "$policy"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '%s\n' '#!/bin/sh' "$made_here" 'exit 101' >"$policy"
    chmod +x "$policy"
}

# All at once; where that fails, one by one: what cannot be had keeps no other package away.
install_packages() { # PACKAGE...; from where the array suite says
    local package
    apt install --no-install-recommends ${suite[@]+"${suite[@]}"} "$@" && return
    [ $# -gt 1 ] || return 0
    for package in "$@"; do
        apt install --no-install-recommends ${suite[@]+"${suite[@]}"} "$package" || true
    done
}

install_from_suite() { # PACKAGE LEAST PACKAGE...; the first decides on the suite
    local suite
    choose_suite "$1" "$2" || suite=()
    install_packages "$1" "${@:3}"
}

install_missing() { # PACKAGE...
    local package qemu=() libvirt=() rest=() suite=()
    start_no_services
    apt-cache show "$1" >/dev/null 2>&1 || apt update || true
    for package in "$@"; do
        case $package in
        qemu-*) qemu=(qemu-utils) ;;
        libvirt-*) libvirt+=("$package") ;;
        *) rest+=("$package") ;;
        esac
    done
    [ ${#rest[@]} -eq 0 ] || install_packages "${rest[@]}"
    [ ${#qemu[@]} -eq 0 ] || install_from_suite qemu-system-x86 "$least_qemu" "${qemu[@]}"
    # libvirt's packages are of one version, or none of them can be installed.
    [ ${#libvirt[@]} -eq 0 ] ||
        install_from_suite libvirt-daemon "$least_libvirt" \
            "${libvirt_tools[@]%%:*}" libvirt-dev
}

left_out() { # one line for each thing that cannot be tested
    local version uncompiled
    for package in $(absent "${tools[@]}"); do
        echo "left out: $package is not installed"
    done
    version=$(qemu_version)
    at_least "$version" "$least_qemu" ||
        echo "left out: a real QEMU >= $least_qemu (here: ${version:-none})"
    version=$(libvirt_version)
    libvirt_is_good || echo "left out: libvirt >= $least_libvirt (here: ${version:-none})"
    uncompiled=$(missing_to_compile)
    [ -z "$uncompiled" ] ||
        echo "left out: libvirt-python, which cannot be compiled here: no" $uncompiled
}

mapfile -t wanted < <(missing | sort -u)
if [ ${#wanted[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${wanted[*]}" >&2
    install_missing "${wanted[@]}"
fi
lines=$(left_out)
[ -z "$lines" ] || echo "$lines"
if [ -n "$lines" ] && [ "${CI-}" = true ]; then
    echo "with CI=true nothing may be left out" >&2
    exit 1
fi
