"""The commands of `ordersaga`: one module per command, with what it prints beside it."""
