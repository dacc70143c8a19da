"""Payment gateways: the port that the service uses, and the gateways behind it."""
