"""The release that this process runs: the version in pyproject.toml, as it was installed."""

from importlib.metadata import version

VERSION = version("ordersaga")
