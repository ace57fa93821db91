"""mapsave: save running QEMU guests to disk and bring them back.

The layers, from the top down. Imports go downwards only, and no files import each other in a
circle; ``tests/test_layers.py`` enforces both::

    cli/                            how people come in
    service/  {api,log,metrics}     how machines come in
    client/                         speaks to the service, for commands and programs
    evacuation/                     all guests of this host, and back
    jobs/                           YAML jobs and the engine that runs them
    hooks/     history/             around operations  |  SQLite: what was done
    operations/                     save, restore, check, verify, recover
    plan/      migration/           choose a strategy  |  drive one QEMU through it
    monitor/   image/   labels/     talk to QEMU  |  the file on disk  |  MAC and DAC
    config.py  errors/  units.py …  base
    emulator/                       the emulated QEMU (image/ and base only)
"""

__version__ = "0.1.0"
