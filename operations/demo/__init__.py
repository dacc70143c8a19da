"""The demo: a story on the terminal, told by a stack of its own that comes and goes with it.

`scenarios` has a function per scenario; `reporter` prints and checks, `shop_client` is what customers and the shop do
over HTTP, `demo_stack` starts the stack, kills a service of it and takes it down.
"""
