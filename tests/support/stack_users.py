"""The users of the MongoDB that `ordersaga up` runs, for tests that look into its databases."""

from pathlib import Path

from operations.stack.database_users import ADMINISTRATOR, load_users
from operations.stack.layout import Layout
from operations.stack.state import read_state


def mongodb_url_of(data_directory: Path, user: str = ADMINISTRATOR) -> str:
    """Return the URL of a user of the stack in this directory, for tests usually the administrator's."""
    layout = Layout(data_directory)
    state = read_state(layout)
    assert state.mongodb_url is not None
    return load_users(layout.secrets, state.database_prefix).url(user, state.mongodb_url)
