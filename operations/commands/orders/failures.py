"""Why an action on orders is not begun."""

from operations.errors import CommandError


class NothingToDoError(CommandError):
    """There is no order to act on, or no such action; the message is for the operator."""
