"""The demo: a story on the terminal, told by a stack of its own that comes and goes with it.

`chapters` is the story, a function a chapter; `scene` is what a chapter prints and claims on, `shop` what its customers
and its owner do over HTTP, `stage` starts the stack, kills a service of it and takes it down, `command` is the command
line's `demo`.
"""
