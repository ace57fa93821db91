"""The log of the service: text, JSON or journald."""
