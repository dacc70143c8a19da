"""Backup and restore: all records of a stack as they were at one moment, in files that mongorestore can read too.

`manifest` is what a backup says about itself, `files` writes and reads its documents, `directory` gives a backup its
name only once it is complete. `taking` copies the databases from one snapshot; `checking` verifies the files of a
backup; `restoring` writes them into an empty stack and judges the result; `outside` finds what happened at the
provider of servers and at the card gateway since then.
"""
