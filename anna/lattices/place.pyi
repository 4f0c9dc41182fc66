"""C-level only."""
