"""Cases that run inside the machine that systemd boots, and what they share."""
