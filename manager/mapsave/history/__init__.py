"""What was done: a SQLite database that outlives the service."""
