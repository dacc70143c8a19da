"""What all four services need and none of them owns: contracts, the bus, the database, settings, HTTP, logs."""
