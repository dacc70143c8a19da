"""Generated from proto/ordersaga/v1/orders.proto by `make proto`; never edited by hand."""
