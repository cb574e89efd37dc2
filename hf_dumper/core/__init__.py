"""The vocabulary that every layer shares: no I/O, no hooks, no model."""
