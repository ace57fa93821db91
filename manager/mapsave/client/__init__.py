"""Who speaks to the service: what the commands use, here and from other hosts."""
