"""`visor-admin import-glance` and `import-visor`: images of another service, through the gateway's own API.

What is read from the other service (`glance.py`, `visor.py`, `mysqldump.py`) becomes `Item`s and `Skipped`s, without
input or output. `importer.py` brings the items to the gateway, one after another; a `Place` has the bytes of each.
Nothing is guessed: a value that has no counterpart is named, and so is each reason for which an image stays behind.
"""
