"""A terminal for commands that run in a test, without colours and 80 columns wide."""

TERMINAL = {"TTY_COMPATIBLE": "1", "TERM": "dumb", "COLUMNS": "80"}
"""The variables with which a command's output counts as a terminal."""
