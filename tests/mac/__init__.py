"""mapsave itself under enforcing SELinux and AppArmor, inside the virtual machine of ``tests/vm``.

A case is in ``guest/selinux_*_cases.py`` or another file of a mode::

    @pytest.mark.refusal  # it sees a refusal, so it must fail in the control boot
    def test_same_image_by_its_path_is_refused_to_qemu(site: cli.Site) -> None:
        with svirt.running() as guest:
            ...
            done = site.run("save", guest.address, "--json", check=7)

Fixtures of all cases are in ``guest/conftest.py``.
"""
