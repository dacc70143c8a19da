"""The static files of the pages."""

from collections.abc import Mapping

ASSETS: Mapping[str, str] = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "keyboard.js": "text/javascript",
    "times.js": "text/javascript",
    "htmx.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""By name, with their content types."""
