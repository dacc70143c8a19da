"""Errors that end a command; their messages are written for the operator."""

from shared.errors import OrdersagaError


class CommandError(OrdersagaError):
    """The command cannot do its work; the command line ends with exit status 1 unless a subclass has another one."""


class UnreachableError(CommandError):
    """A server does not answer, or no stack is known; the command line ends with exit status 3."""


class UnfinishedRestoreError(CommandError):
    """The databases hold a part of a backup only: a restore was interrupted, or is under way."""


class DataDirectoryError(CommandError):
    """The path cannot be the directory of a stack or of a backup; the command line ends with exit status 2."""
