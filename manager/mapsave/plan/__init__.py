"""Choose how to save: the strategy."""
