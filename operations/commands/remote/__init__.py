"""Commands from another machine: the operations API of a console in place of the servers.

api     requests, and their errors in words
reach   which commands work so, and why the others do not
"""
