"""The cleanup: deletes the records of orders that were cancelled long ago and hold nothing, and other old records.

`age` parses the age; `deletion` deletes orders in groups, and then what nothing refers to any more: holds that have
ended, and the answers that repeated requests would get.
"""
