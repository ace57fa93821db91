"""Many hosts: one fleet.yaml, one PostgreSQL, each host its own authority."""
