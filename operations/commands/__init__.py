"""The commands of `ordersaga`: a module per command, and a `*_display` module for its output."""
