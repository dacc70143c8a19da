"""Consistent reads over all databases and the broker."""
