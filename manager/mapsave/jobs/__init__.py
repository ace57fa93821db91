"""Save jobs in YAML, and the engine that runs them."""
