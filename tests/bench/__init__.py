"""How fast mapsave is and how much memory it takes: ``python -m tests.bench``.

``docs/benchmarks.md`` says what is measured and how. Only the standard library is imported here:
the peak that the kernel reports for a process includes that of the process which started it.
"""
