"""The parts that all services share: contracts, the bus, the database, settings, HTTP and logs."""
