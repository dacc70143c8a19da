"""Create the API keys of the stack itself: one for the command line, one for the console. Existing ones stay.

The argument is the data directory. The file of keys, which all services read, and the keys themselves are in different
volumes, so that a service has no key of another.
"""

import sys
from pathlib import Path

from operations.stack.api_keys import OWN_KEYS, ensure_own_key
from operations.stack.layout import Layout

if __name__ == "__main__":
    layout = Layout(Path(sys.argv[1]))
    for name in OWN_KEYS:
        ensure_own_key(layout, name)
    print(f"the API keys of the stack are in {layout.secrets}")  # noqa: T201
