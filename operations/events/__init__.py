"""The stream of events: reads it from any time or offset, and exports it to files."""
