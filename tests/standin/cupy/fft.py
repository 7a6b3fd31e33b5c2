"""There are no transforms."""
