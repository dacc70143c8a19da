"""The reason that an operator gives for an act, kept in the log of actions."""

import typer

LONGEST_REASON = 500


def checked_reason(why: str) -> str:
    """Return the reason without spaces around it. Raises BadParameter if it is empty or too long."""
    reason = why.strip()
    if not 1 <= len(reason) <= LONGEST_REASON:
        raise typer.BadParameter(f"has {len(reason)} characters; 1 to {LONGEST_REASON} are allowed", param_hint="--why")
    return reason
