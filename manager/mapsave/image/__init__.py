"""The file on disk: descriptors, superblock, QEMU's stream, the directory of images."""
