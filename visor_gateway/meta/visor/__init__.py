"""Records that a VISOR Meta server shares with other programs. What its API can't keep is in a local SQLite database.

`server` asks it, `published` says what it is told, `taken` what of its answers is believed, `links` which record is
which, `following` changes records after the server's, `catalogue` keeps both sides alike, `images` is the repository,
and `marker` refuses a second gateway.
"""

from __future__ import annotations
