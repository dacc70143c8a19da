"""Errors that end a command with an exit status other than 1; their messages are written for the operator."""


class UnreachableError(Exception):
    """A server does not answer, or no stack is known; the command line ends with exit status 3."""


class DataDirectoryError(Exception):
    """The path cannot be a data directory; the command line ends with exit status 2."""
