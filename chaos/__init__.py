"""Chaos: faults of every kind on a stack of its own, under load, with its own record of every answer that clients got.

`fault` says what a kind of faults is, and `catalogue` lists them. `rounds` draws from a seed which fault comes when.
`clients` places orders and all else, and notes each request and answer in `records`. `running` lets one fault after the
other happen and does what the documentation tells an operator to do. `verdict` compares the record with what the stack
has stored in the end; `report` puts it all into a table.
"""
