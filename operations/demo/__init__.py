"""The demo: scenarios that run on a temporary stack and check their outcome.

`scenarios` has one function per scenario, `shop_client` acts for customers and the shop over HTTP, `demo_stack` starts
the stack, kills one of its services and removes it. `reporter` is what scenarios report to; the command implements it.
"""
