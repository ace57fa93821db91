"""Many hosts: one fleet.yaml, one PostgreSQL, each host its own authority.

A task means "have this host do this operation, if it has not yet".
"""
