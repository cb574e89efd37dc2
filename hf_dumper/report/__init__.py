"""Dumps as text: for a terminal, a pipe or a notebook."""
