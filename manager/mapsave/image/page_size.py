"""The page size of a QEMU target: what one bit of an image's bitmaps covers.

QEMU writes the page size into the header of each RAM block, and takes its own when it loads
(``read_ramblock_mapped_ram`` in ``migration/ram.c`` of 10.0): with another one it loads other RAM,
without a word. No QMP command says it before a migration, but the architecture does: sizes are from
``target/*/cpu-param.h``. ARM's varies, and the stream names it then, which QEMU compares itself.
"""

X86 = 4096
_FIXED = {
    **dict.fromkeys(("i386", "x86_64", "ppc", "ppc64", "riscv32", "riscv64", "s390x"), 4096),
    **dict.fromkeys(("loongarch64", "hppa", "m68k", "sparc"), 4096),
    **dict.fromkeys(("alpha", "sparc64"), 8192),
}
_ARM = ("arm", "aarch64")
_ARM_SMALLEST = 1024  # where the stream names none (TARGET_PAGE_BITS_LEGACY)
_X86_MACHINES = ("pc-i440fx-", "pc-q35-", "microvm", "isapc", "xenfv", "xenpv")


def of_machine(machine: str) -> int | None:
    """Return the page size of a machine type, in bytes; None where its name does not say."""
    return X86 if machine.startswith(_X86_MACHINES) else None


def of_target(architecture: str, page_bits: int | None) -> int | None:
    """Return the page size in bytes with which a QEMU of ``architecture`` would load a stream.

    ``architecture`` as ``query-target`` names it, ``page_bits`` as the stream does if it does;
    None where the architecture is not known.
    """
    if architecture in _ARM:
        return _ARM_SMALLEST if page_bits is None else 1 << page_bits
    return _FIXED.get(architecture)
