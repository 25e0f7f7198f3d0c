"""`visor-admin import-glance`: images of another service, with their bytes, through the gateway's own API.

What is read from the other service becomes `Item`s and `Skipped`s (`glance.py`), without input or output. `importer.py`
brings the items to the gateway, one after another, and asks a `Place` for the bytes of each. Nothing is
guessed: a value that has no counterpart is named, and so is each reason for which an image stays behind.
"""
