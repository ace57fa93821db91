"""A throwaway QEMU has the guest's devices, and opens nothing of the guest's."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.proof import command_line

QEMU = "qemu-system-x86_64"


def _rewritten(
    *words: str,
    under: Sequence[str] = (),
    cwd: str | None = None,
    blocks: Sequence[str] = (),
    program: str | None = None,
    user: str | None = None,
) -> command_line.Rewritten:
    def tap(queues: int) -> Sequence[int]:
        return range(100, 100 + queues)

    return command_line.rewritten(
        [*under, QEMU, *words],
        command_line.Start(program=program, user=user),
        cwd=cwd,
        blocks=blocks,
        tap=tap,
    )


def _of(*words: str) -> list[str]:
    """Return what becomes of the words of a guest, without what each throwaway QEMU gets."""
    argv = _rewritten(*words).argv
    added = ("-name", command_line.NAME, "-display", "none", "-monitor", "none")
    assert argv[-len(added) :] == added
    return list(argv[1 : -len(added)])


# What a guest has, and what its throwaway QEMU has in place of it.
_REPLACED = [
    ("-chardev socket,id=a,path=/run/x,server=on,wait=off", "-chardev null,id=a"),
    ("-chardev socket,id=a,path=/run/x,mux=on", "-chardev null,id=a,mux=on"),
    ("-chardev file,id=a,path=/var/log/x", "-chardev null,id=a"),
    ("-chardev null,id=a,logfile=/var/log/x", "-chardev null,id=a"),
    ("-chardev qemu-vdagent,id=a,logfile=/x", "-chardev qemu-vdagent,id=a"),
    ("-serial unix:/run/s,server=on", "-serial null"),
    ("-serial mon:stdio", "-serial null"),
    ("-serial none", "-serial none"),
    ("-serial chardev:a", "-serial chardev:a"),
    ("--serial file:/x", "-serial null"),
    ("-parallel /dev/parport0", "-parallel null"),
    ("-debugcon file:/x", "-debugcon null"),
    ("-netdev user,id=n", "-netdev user,id=n"),
    ("-netdev user,id=n,hostfwd=tcp::1-:2,tftp=/srv", "-netdev user,id=n"),
    ("-netdev tap,id=n,ifname=t0,vhost=on", "-netdev tap,fd=100,id=n"),
    ("-netdev tap,id=n,queues=2,script=no", "-netdev tap,fds=100:101,id=n"),
    ("-netdev tap,id=n,fds=5:6:7,vhostfds=8:9:10", "-netdev tap,fds=100:101:102,id=n"),
    ("-netdev tap,id=n,vnet_hdr=off", "-netdev hubport,hubid=1048577,id=n"),
    ("-netdev socket,id=n,listen=:5", "-netdev hubport,hubid=1048577,id=n"),
    ("-nic user,model=e1000,hostfwd=tcp::1-:2", "-nic user,model=e1000"),
    ("-nic tap,model=e1000,mac=5:4,ifname=t", "-nic tap,fd=100,model=e1000,mac=5:4"),
    ("-net nic,model=e1000", "-net nic,model=e1000"),
    ("-net tap,ifname=t0", ""),
    ("-audiodev pa,id=a,server=/run/pulse", "-audiodev none,id=a"),
    ("-audio driver=pa,model=hda", "-audio none,model=hda"),
    ("-fsdev local,id=f,path=/srv,security_model=none", "-fsdev synth,id=f"),
    ("-virtfs local,path=/srv,mount_tag=t,security_model=none", "-virtfs synth,mount_tag=t"),
    ("-spice port=5900,addr=0.0.0.0", "-spice port=0,disable-ticketing=on"),
    ("-vnc :1 -display gtk -monitor stdio -qmp unix:/q,server=on -mon chardev=a", ""),
    ("-pidfile /run/p -daemonize -D /var/log/q -d int -s -gdb tcp::1 -S -snapshot", ""),
    ("-incoming defer -add-fd fd=3,set=1 -overcommit mem-lock=on", ""),
    ("-name web01,process=x -trace file=/x -mem-path /dev/hugepages -mem-prealloc", ""),
    ("-run-with user=nobody,chroot=/x,async-teardown=on", "-run-with user=nobody"),
    ("-run-with chroot=/x", ""),
    ("-runas nobody", "-runas nobody"),
    ("-object rng-random,id=r,filename=/dev/hwrng", "-object rng-builtin,id=r"),
    ("-object secret,id=s,file=/etc/key", ""),
    ("-object iothread,id=i", "-object iothread,id=i"),
    (
        "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on,prealloc=on",
        "-object memory-backend-ram,id=m,size=1G,reserve=off",
    ),
    (
        "-object memory-backend-memfd,id=m,size=1G,hugetlb=on,host-nodes=0,policy=bind",
        "-object memory-backend-ram,id=m,size=1G,reserve=off",
    ),
    ("-device virtio-net-pci,netdev=n,romfile=", "-device virtio-net-pci,netdev=n,romfile="),
    ("-machine q35 -cpu host -smp 2 -m 1G", "-machine q35 -cpu host -smp 2 -m 1G"),
    ("-nodefaults -enable-kvm -no-reboot", "-nodefaults -enable-kvm -no-reboot"),
    ("-icount shift=7", "-icount shift=7"),
    ("-fw_cfg name=opt/a,string=b", "-fw_cfg name=opt/a,string=b"),
]


@pytest.mark.parametrize(("words", "wanted"), _REPLACED, ids=[each[0][:40] for each in _REPLACED])
def test_what_is_of_the_host_is_replaced(words: str, wanted: str) -> None:
    assert " ".join(_of(*words.split())) == wanted


def test_a_json_option_stays_json() -> None:
    option = {"driver": "qcow2", "node-name": "d", "file": {"driver": "file", "filename": "/x"}}
    (_, value) = _of("-blockdev", json.dumps(option))
    assert json.loads(value) == {"driver": "null-co", "read-zeroes": True, "node-name": "d"}


# What cannot be replaced, and a word of the reason.
_REFUSED = [
    ("-device vfio-pci,host=01:00.0,id=gpu", "gpu"),
    ('-device {"driver":"vfio-pci","host":"01:00.0"}', "vfio-pci"),
    ("-device vhost-vsock-pci,guest-cid=3", "vhost-vsock-pci"),
    ("-device vhost-user-fs-pci,chardev=c,tag=t", "vhost-user-fs-pci"),
    ("-device tpm-crb,tpmdev=t", "tpm-crb"),
    ("-tpmdev emulator,id=t,chardev=c", "-tpmdev"),
    ("-device usb-host,hostbus=1,hostaddr=2", "usb-host"),
    ("-device scsi-generic,drive=d", "scsi-generic"),
    ("-object sev-guest,id=s,cbitpos=47", "sev-guest"),
    ("-object dbus-vmstate,id=d,addr=unix:/x", "dbus-vmstate"),
    ("-object memory-backend-epc,id=e,size=1M", "memory-backend-epc"),
    ("-machine q35,confidential-guest-support=s", "encrypted"),
    ("-netdev user,id=n,guestfwd=tcp:10.0.2.100:1-cmd:x", "guestfwd"),
    ("-netdev user,id=n,smb=/srv", "smb"),
    ("-icount shift=1,rr=record,rrfile=/x", "-icount"),
    ("-readconfig /etc/x", "-readconfig"),
    ("-loadvm x", "-loadvm"),
    ("-set device.a.b=c", "-set"),
    ("-some-option-of-tomorrow x", "-some-option-of-tomorrow"),
    ("-qtest", "-qtest"),
]


@pytest.mark.parametrize(("words", "named"), _REFUSED, ids=[each[0][:40] for each in _REFUSED])
def test_what_cannot_be_replaced_is_refused(words: str, named: str) -> None:
    with pytest.raises(errors.NotProvable) as caught:
        _rewritten(*words.split(" ", 1))
    assert named in caught.value.message


@pytest.mark.parametrize("option", sorted(command_line.SHORT))
def test_files_of_short_options(option: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(5 << 20))
    words = _of(f"-{option}", str(disk))
    assert words[0] == "-drive"
    assert f"driver=null-co,read-zeroes=on,size={5 << 20}" in words[1]
    assert str(disk) not in words[1]


def test_disks_have_the_size_and_the_place_they_had(tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(bytes((1 << 20) + 5))
    head = b"QFI\xfb" + bytes(20) + (7 << 30).to_bytes(8, "big")
    qcow2.write_bytes(head.ljust(4096, b"\0"))
    disks = [
        *("-drive", f"file={raw},format=raw,if=none,id=a,cache=none,aio=native,media=cdrom"),
        *("-drive", f"file={qcow2},if=pflash,unit=1,readonly=on,snapshot=on"),
        *("-drive", "if=none,id=empty,media=cdrom"),
        *("-blockdev", f"driver=file,node-name=f,filename={qcow2},auto-read-only=on"),
        *("-blockdev", "driver=qcow2,node-name=q,file=f,read-only=on"),
        *("-blockdev", "driver=nbd,node-name=n,server.type=unix,server.path=/run/nbd"),
        *("-blockdev", "driver=raw,node-name=loop,file=loop"),
    ]
    words = _of(*disks)
    null = "driver=null-co,read-zeroes=on"
    assert [value for word, value in itertools.pairwise(words) if word.startswith("-")] == [
        f"if=none,id=a,cache=none,media=cdrom,{null},size={(1 << 20) + 512}",
        f"if=pflash,unit=1,readonly=on,{null},size={7 << 30}",
        "if=none,id=empty,media=cdrom",
        f"null-co,read-zeroes=on,size={7 << 30},node-name=f",
        f"null-co,read-zeroes=on,size={7 << 30},node-name=q,read-only=on",
        "null-co,read-zeroes=on,node-name=n",
        "null-co,read-zeroes=on,node-name=loop",
    ]


def test_paths_are_relative_to_the_directory_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    argv = _rewritten("-hda", "disk", cwd=str(tmp_path)).argv
    assert "size=4096" in argv[2]


def test_what_was_replaced_is_said_without_secrets() -> None:
    words = [
        *("-vnc", ":1,password=on", "-object", "secret,id=s,data=hunter2"),
        *("-drive", "id=d,file=nbd://user:hunter2@host/x"),
        *("-netdev", "socket,id=n,connect=host:1", "-chardev", "pty,id=c"),
    ]
    assert _rewritten(*words).replaced == (
        "drive d: a file by null-co",
        "netdev n: socket by hubport",
        "chardev c: pty by null",
    )


def test_names_of_old_machine_types_stay() -> None:
    backend = ("-object", "memory-backend-file,id=m,size=1G,mem-path=/x")
    argv = _rewritten(*backend, blocks=["/objects/m"]).argv
    assert argv[2].endswith("x-use-canonical-path-for-ramblock-id=on")


def test_programs_that_start_qemu() -> None:
    under = ["nice", "-n", "5", "setpriv", "--reuid", "nobody"]
    assert _rewritten("-S", under=under).argv[:7] == (*under, QEMU)
    assert _rewritten(under=under, program="/opt/other").argv[6] == "/opt/other"
    for words in (["sudo", QEMU], ["/usr/bin/bwrap", QEMU], ["/usr/local/bin/start-guest", "a"]):
        with pytest.raises(errors.NotProvable):
            command_line.rewritten(words, tap=lambda _: [])


def test_qemu_becomes_the_user_of_the_guest() -> None:
    sandbox = ["-sandbox", "on,elevateprivileges=deny,spawn=deny"]
    argv = _rewritten(*sandbox, user="64055:64055").argv
    assert argv[1:3] == ("-sandbox", "on,spawn=deny")
    assert argv[-2:] == ("-run-with", "user=64055:64055")
    argv = _rewritten("-run-with", "user=nobody", user="64055:64055").argv
    assert argv[1:3] == ("-run-with", "user=nobody")
    assert argv.count("-run-with") == 1
    assert _rewritten(*sandbox).argv[1:3] == ("-sandbox", "on,elevateprivileges=deny,spawn=deny")
