"""Consistent reads over all databases and the broker, for whatever has to compare them."""
