"""Many guests of this host: saved before it goes down, restored when it is back; and clones."""
