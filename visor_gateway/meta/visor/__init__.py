"""Records and users that VISOR's servers share with other programs. What their APIs can't keep is in a local database.

`server` asks it, `published` says what it is told, `taken` what of its answers is believed, `links` which record is
which, `following` changes records after the server's, `catalogue` keeps both sides alike, `images` is the repository,
and `marker` refuses a second gateway. Of an Auth server, `auth` knows the users, `users` has what is kept of them here,
and `accounts` is the repository.
"""

from __future__ import annotations
