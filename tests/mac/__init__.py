"""mapsave itself under enforcing SELinux and AppArmor, inside a small virtual machine.

``image.py`` builds the machine's disk once, ``machine.py`` boots it under TCG for its ``MODES``. A
boot unpacks this checkout and runs the cases of some files of ``guest/`` with pytest; the tests out
here, one for each case, report what came of it on the serial line.

A case is an ordinary test in ``guest/selinux_*_cases.py`` (or another file of a mode) that has the
whole test kit, as root, with ``mapsave`` as users have it::

    @pytest.mark.refusal  # it sees a refusal, so it must fail in the control boot
    def test_wrong_categories_are_refused(site: cli.Site) -> None:
        with svirt.running() as guest:
            ...
            done = site.run("save", guest.address, "--json", check=7)

Write one function for each case, without parametrization: the functions' names are read from the
source, and a case without a result fails. Fixtures of all cases are in ``guest/conftest.py``.

    python -m tests.mac selinux -k wrong_categories

boots and runs some cases by hand, in six seconds and what the cases take. To add a mode, add it
to ``machine.MODES`` and a test marked ``boot(MODE)`` like the others: all boots that the chosen
tests want are done before the first of them, two at a time. What the disk contains is said by
``image.py`` and ``vm/``; after a change there it is built again (a minute): ``tests/run.sh``
does that (``build.py``) beside the stages before this one.
"""
