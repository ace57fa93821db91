"""Prove images: load one into a QEMU that is thrown away, and see whether that works."""
