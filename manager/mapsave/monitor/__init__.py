"""Talk to QEMU: sessions, and the hand-over of descriptors."""
