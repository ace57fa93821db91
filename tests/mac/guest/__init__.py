"""What runs inside the virtual machine; see ``tests/mac``."""
