"""What operators do with orders: finding them, the actions on them, and actions on many orders at once."""
