"""Users and groups that this host need not know."""

import grp

UID = 12345  # of users that this host need not know


def _groups(count: int) -> list[grp.struct_group]:
    """Return groups of this host that no one needs to be in."""
    found = [each for each in grp.getgrall() if each.gr_gid not in (0, 65534)]
    assert len(found) >= count
    return found[-count:]


OPERATORS, READERS = _groups(2)
