"""The archive: moves orders that settled long ago into files, and keeps the books right without them.

`totals` and `lines` decide without I/O what an order still counts for, and how it is written; `files` writes, reads
back and checks the files of a directory; `archiving` takes orders through it: written, verified, then deleted.
"""
