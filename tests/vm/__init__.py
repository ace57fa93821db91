"""A small virtual machine in which cases run as root, and whose kernel is theirs.

``image.py`` builds its disk once, of the distribution's packages and what is in ``disk/``;
``machine.py`` boots it under TCG for its ``MODES``. A boot unpacks this checkout and runs the cases
of some files of a stage's ``guest/`` with pytest; tests outside of the machine, one for each case,
report what came of it on the serial line (``boots.py``).

A case is an ordinary test in a file that its mode names, and has the whole test kit. Write one
function for each case, without parametrization: the functions' names are read from the source, and
a case without a result fails.

    python -m tests.vm selinux -k born_with

boots and runs some cases by hand, in six seconds and what the cases take. All boots that the chosen
tests want are done before the first of them, two at a time; after a change of what the disk
contains it is built again (a minute). ``tests/run.sh`` does both (``build.py``) beside the stages
that wait for guests.

Process 1 is a script that runs the cases and ends, or systemd: then the machine reboots between the
modes of one boot, with the disk as the one before has left it.
"""
