"""mapsave: save running QEMU guests to disk and bring them back.

The layers, from the top down (imports go downwards only, ``tests/test_layers.py`` holds it so)::

    cli/   service/   fleet/                 how people and machines come in
    jobs/                                    YAML jobs and the engine that runs them
    operations/                              save, restore, check, verify, recover
    plan/      migration/                    choose a strategy  |  drive one QEMU through it
    monitor/   image/   labels/              talk to QEMU  |  the file on disk  |  MAC and DAC
    config.py  errors.py  units.py           base
    emulator/                                the emulated QEMU (image/ and base only)
"""

__version__ = "0.1.0"
