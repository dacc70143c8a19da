"""Card gateways: the interface that the service charges through, and its implementations.

Begin with `port`, the interface and its outcomes. `simulated` serves tests and the demo. `stripe` charges real cards
over `stripe_http`, and `stripe_outcomes` interprets Stripe's answers. `factory` opens the gateway that the settings
name. Nothing here knows orders, messages or the books.
"""
