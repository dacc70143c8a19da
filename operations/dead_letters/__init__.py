"""Dead letters: recorded from the broker, grouped by cause, replayed, edited, discarded. Nothing is ever deleted.

`service` is what the command line and the console use. `ingest` takes letters from the broker, `replaying` sends them
back, `notices` hears which replays were handled. `records`, `groups` and `replays` are the collections, which `schema`
names; `updates` has the changes of a letter. `letter`, `fingerprint`, `filters`, `editing`, `patching`, `difference`,
`pages`, `careful`, `status` and `times` decide without I/O.
"""
