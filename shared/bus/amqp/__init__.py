"""AMQP as the bus speaks it: frames, the wire, the link to the broker, and publisher confirms."""
