"""The cleanup: deletes the records of orders that were cancelled long ago and hold nothing.

`age` reads how long ago; `deletable` says of one order, without I/O, why its records must stay, if they must; `records`
deletes those that need not, a group at a time and each group in one transaction; `command` is the command line's
`cleanup`.
"""
