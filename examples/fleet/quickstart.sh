#!/usr/bin/env bash
# Install mapsave into a virtual environment, then run a fleet of three hosts on this machine: one
# PostgreSQL, and for each host a service, an agent and two emulated guests. A job saves all guests,
# one host is evacuated, and its guests come back. Needs Python 3.11 or later with venv, and
# PostgreSQL 14 or later, which root on Debian has installed. Takes a minute or two. Leaves nothing but
# the virtual environment, and PostgreSQL if it was installed.
#
#   bash examples/fleet/quickstart.sh
#
#   MAPSAVE_VENV=DIRECTORY    use this virtual environment, which has what mapsave needs, with
#                             mapsave as it is in this checkout; nothing is installed
set -euo pipefail

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
    printf 'quickstart: %s\n' "$@" >&2
    exit 1
}

. "$checkout/examples/quickstart/environment.sh"

# Print the directory of the newest PostgreSQL's programs; Debian has them outside of PATH.
find_postgresql() {
    local found
    found=$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -n 1)
    [ -n "$found" ] || found=$(command -v initdb) || return 1
    dirname -- "$(readlink -f -- "$found")"
}

install_postgresql() {
    local how="on Debian and Ubuntu: apt install postgresql; on Fedora: dnf install postgresql-server"
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "no PostgreSQL is installed" "$how"
    echo "installing PostgreSQL: apt-get install postgresql"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql \
        >/dev/null || fail "apt-get could not install PostgreSQL" "$how"
}

postgresql=$(find_postgresql) || {
    install_postgresql
    postgresql=$(find_postgresql) || fail "PostgreSQL was installed, but there is no initdb"
}
prepare "[fleet]"
exec "$venv/bin/python" -B "$checkout/examples/fleet/demo.py" "$postgresql" "${mapsave[@]}"
