"""The error of the archive."""

from operations.errors import CommandError


class ArchiveError(CommandError):
    """An archive cannot be written, or a file of it is damaged; orders that are not safely in it stay."""
