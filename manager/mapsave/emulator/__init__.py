"""The emulated QEMU: a QMP server with real guest RAM that saves and restores mapped-ram."""
