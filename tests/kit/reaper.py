"""``python reaper.py PIDFILE DEATHS COMMAND…``: run a command and reap all that it leaves behind.

QEMUs of libvirt are orphans. They come to us instead of process 1 (PR_SET_CHILD_SUBREAPER,
prctl(2)), since in some containers that one is slow to reap, and libvirt waits for it whenever it
ends a guest. PIDFILE gets the process id of the command, DEATHS a line for each
orphan that died by SIGSEGV. We end when the last child is gone.
"""

import ctypes
import os
import signal
import sys

_SUBREAPER = 36  # linux/prctl.h


def main(pid_file: str, deaths: str, *command: str) -> None:
    """Run ``command``, found by PATH, until it and all its orphans have ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    pid = os.posix_spawnp(command[0], command, os.environ)
    with open(f"{pid_file}.new", "w") as file:
        file.write(str(pid))
    os.rename(f"{pid_file}.new", pid_file)
    try:
        while True:
            _, status = os.wait()
            if os.waitstatus_to_exitcode(status) == -signal.SIGSEGV:
                with open(deaths, "a") as file:
                    file.write("SIGSEGV\n")
    except ChildProcessError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
