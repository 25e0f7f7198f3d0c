"""A list of images as Glance 33 answered it, in two pages, and the bytes that it had."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

PAGES: Final = sorted((Path(__file__).parent / "glance").glob("page-*.json"))


def content(name: str, size: int) -> bytes:
    """The bytes of the image of that name: what was uploaded when the list was recorded."""
    return hashlib.shake_256(name.encode()).digest(size)


def images() -> list[dict[str, Any]]:
    """Every image of the list."""
    return [image for page in PAGES for image in json.loads(page.read_bytes())["images"]]


def image(name: str) -> dict[str, Any]:
    """The one of that name."""
    [found] = [image for image in images() if image["name"] == name]
    return found


def write_files(directory: Path) -> None:
    """The files of the list's images, named by id, as Glance's file store has them."""
    for one in images():
        if one["size"] is not None:
            (directory / one["id"]).write_bytes(content(one["name"], one["size"]))


def write_list(path: Path, *found: dict[str, Any], **more: Any) -> Path:
    """A list of one page."""
    path.write_text(json.dumps({"images": found, "first": "/v2/images", "schema": "/v2/schemas/images", **more}))
    return path
