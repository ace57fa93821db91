"""Drive one QEMU through an outgoing or incoming migration."""
