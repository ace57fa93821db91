"""Feature words of x86 processors: bits of CPUID registers, and their names.

QEMU tells the words that it gives the guest as ``feature-words`` (``qapi/machine-target.json``,
X86CPUFeatureWordInfo); what a bit means is in Intel's and AMD's manuals under CPUID.
"""

from collections.abc import Iterable, Mapping

# By word, the names from bit 0 on; "-" is reserved or of no use for a message.
_NAMES = {
    "1.EDX": "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush "
    "- ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    "1.ECX": "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - "
    "pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand "
    "hypervisor",
    "7.0.EBX": "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - "
    "zero-fcs-fds mpx - avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb "
    "intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    "7.0.ECX": "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 - gfni vaes vpclmulqdq "
    "avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect "
    "cldemote - movdiri movdir64b - sgxlc pks",
    "7.0.EDX": "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - "
    "serialize - tsx-ldtrk - pconfig arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl "
    "stibp flush-l1d arch-capabilities core-capability ssbd",
    "80000001.EDX": "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt "
    "pdpe1gb rdtscp - lm 3dnowext 3dnow",
    "80000001.ECX": "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse "
    "3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core "
    "perfctr-nb",
}


def words(told: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Return the words as QEMU told them, named by leaf, subleaf and register: ``7.0.EBX``."""
    found = {}
    for word in told:
        leaf, subleaf = int(str(word["cpuid-input-eax"])), word.get("cpuid-input-ecx")
        place = f"{leaf:X}" if subleaf is None else f"{leaf:X}.{subleaf}"
        found[f"{place}.{word['cpuid-register']}"] = int(str(word["features"]))
    return found


def compared(saved: Mapping[str, int], here: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return the names of the features that only ``saved`` has, and of those only ``here`` has.

    A word that one side does not know, being another version of QEMU, counts as zero.
    """
    both = sorted(saved.keys() | here.keys())
    missing = [name for word in both for name in _named(word, saved, here)]
    added = [name for word in both for name in _named(word, here, saved)]
    return missing, added


def _named(word: str, has: Mapping[str, int], lacks: Mapping[str, int]) -> list[str]:
    """Return the names of the bits of a word that one has and the other lacks."""
    bits = has.get(word, 0) & ~lacks.get(word, 0)
    names = _NAMES.get(word, "").split()
    return [
        names[bit] if bit < len(names) and names[bit] != "-" else f"CPUID {word} bit {bit}"
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    ]
