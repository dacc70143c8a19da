"""The errors of backup and restore."""

from operations.errors import CommandError


class BackupError(CommandError):
    """A backup cannot be made or restored, or is damaged."""


class DamagedError(BackupError):
    """Files of a backup are missing, damaged or not its own; `problems` names each."""

    def __init__(self, directory: object, problems: list[str]) -> None:
        more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
        super().__init__(f"the backup in {directory} is damaged: {problems[0]}{more}")
        self.problems = problems


class UnreadableError(BackupError):
    """The content of a file is not as it was written."""
