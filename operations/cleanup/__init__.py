"""The cleanup: deletes the records of orders that were cancelled long ago and hold nothing.

`age` parses the age; `deletable` decides without I/O whether the records of one order may be deleted; `deletion`
deletes them in groups, each group in one transaction.
"""
