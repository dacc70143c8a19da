"""The name of the operator at the command line."""

import getpass
import os


def current_operator() -> str:
    """Return the name in ORDERSAGA_OPERATOR, else the name of the user account."""
    try:
        return os.environ.get("ORDERSAGA_OPERATOR") or getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return f"user {os.getuid()}"
