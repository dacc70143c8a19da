"""The release that this process runs (the version in pyproject.toml, as it was installed), and since when."""

from importlib.metadata import version

from shared.clock import utc_now

VERSION = version("ordersaga")

STARTED_AT = utc_now()
"""When this process was started."""
