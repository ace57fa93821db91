"""All guests of a host at once: saved before it goes down, restored when it is back."""
