"""What is counted of stock."""

from prometheus_client import Counter, Gauge, Histogram

reservations = Counter("inventory_reservations_total", "Orders decided, by outcome", ["outcome"])
conflicts = Counter("inventory_conflicts_total", "Writes given up because another worker had changed the product")
passes = Histogram(
    "inventory_allocation_passes",
    "How often a batch of orders was allocated until all of it was decided",
    buckets=(1, 2, 3, 5, 10, 20, 50, 100),
)
reserving_seconds = Histogram(
    "inventory_reserving_seconds",
    "Time to decide a batch of orders, from the first read to the last record, conflicts with other workers included",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
allocation_seconds = Histogram(
    "inventory_allocation_seconds",
    "Time to decide in memory who gets what, per batch",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1),
)
overdue_marks = Gauge("inventory_overdue_marks", "Marks on products without a reservation for more than a minute")
