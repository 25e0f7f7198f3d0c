"""Where the objects of an HDFS store are: paths in its file system, and the locations that name them. Sans-IO.

An object is `<directory>/<image id>/<attempt id>`, and has `.partial` behind its name before it is committed. Its
location is `hdfs://<host><path>`. The host stands there for people: which NameNodes are asked says the configuration,
so that images stay where they are when a NameNode moves.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

from ..errors import ObjectMissing
from .objectkey import ObjectKey, is_image_id

_AUTHORITY: Final = r"hdfs://[^/?#@\s]+"


class HdfsPaths:
    """Paths and locations of one store.

    Args:
        endpoint: The URL of its first NameNode, whose host locations name.
        directory: Absolute path of the directory that holds the images.
    """

    def __init__(self, endpoint: str, directory: str) -> None:
        self.root = "/" + directory.strip("/")
        self._prefix = self.root.rstrip("/")
        host = urlsplit(endpoint).hostname or ""
        self._base = f"hdfs://{f'[{host}]' if ':' in host else host}{quote(self._prefix)}/"
        self._location = re.compile(_AUTHORITY + re.escape(quote(self._prefix)) + r"/([^/]+/[^/]+)\Z")

    def image(self, image_id: str) -> str:
        """The directory of an image."""
        return f"{self._prefix}/{image_id}"

    def object(self, key: ObjectKey) -> str:
        """The path of a committed object."""
        return f"{self._prefix}/{key}"

    def partial(self, key: ObjectKey) -> str:
        """The path of an object before it is committed."""
        return f"{self.image(key.image_id)}/{key.partial}"

    def location(self, key: ObjectKey) -> str:
        """The object's URI."""
        return f"{self._base}{key}"

    def key(self, location: str) -> ObjectKey:
        """The key that a location names. Raises `ObjectMissing` for what is no location of this store."""
        found = self._location.match(location)
        key = found and ObjectKey.from_file(*found[1].split("/")) if found else None
        if found is None or key is None or str(key) != found[1]:
            raise ObjectMissing("The location names no object of this store")
        return key

    @staticmethod
    def is_image(name: str) -> bool:
        """Whether a directory of this name can be an image's."""
        return is_image_id(name)
