"""`visor-gateway doctor`: looks at everything that a gateway depends on, and says what to do about what it finds.

`examination` is the order of things; each other module looks at one part: `configuration`, `files`, `records`, `probe`
(the stores), `clock`, `kernel`, `service` (descriptors and systemd). `finding` is what they tell.

It may run beside a daemon: it takes no lock, opens the database for reading, and what it writes into a store is one
object under a key of its own, which it removes whatever happens.
"""
