"""`ordersaga doctor`: what this machine lacks to run the stack, and what is wrong with one that runs.

`finding` is what a check returns, `machine` checks the prerequisites, `database`, `broker` and `provider` a running
stack, `command` runs them all and prints what they found.
"""
