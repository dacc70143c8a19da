"""What a cause of dead letters or an outage means for customers: orders, customers, money, and the next deadline."""
