"""The records of a running Meta server of VISOR, as it lists them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from ...errors import MetadataUnavailable
from ...meta.visor.server import VisorServer, way_to
from .item import Unfit
from .visor import read_list

PAGES: Final = 1000  # of one list, each up to 64 MiB: a server that never ends is not asked for ever


async def listed(url: str, owners: Collection[str]) -> list[Any]:
    """Every public image, and every image of `owners` and of those who own a public one. Runs under Trio.

    That server lists private images only to those who name their owner, and does not tell which owners there are.

    Args:
        url: `visor+http://HOST:PORT`.

    Raises:
        ConfigError: The URL is of another form.
        MetadataUnavailable: The server can't be reached, or its answer is no list.
    """
    async with way_to(url) as outbound:
        server = VisorServer(url, outbound)
        found = {_key(image): image for image in await _list(server, {})}
        known = {image.get("owner") for image in found.values() if isinstance(image, dict)}
        for owner in sorted({*owners, *(name for name in known if isinstance(name, str) and name)}):
            for image in await _list(server, {"owner": owner}):
                found.setdefault(_key(image), image)
        return list(found.values())


async def _list(server: VisorServer, query: dict[str, str]) -> list[Any]:
    answer = await server.list("/images/detail", query)
    images: list[Any] = []
    for _ in range(PAGES):
        if answer.status == 404:
            return images
        if answer.status != 200:
            raise MetadataUnavailable(f"The Meta server refuses a list: status {answer.status}")
        try:
            images += read_list(answer.body)
        except Unfit as exc:
            raise MetadataUnavailable(f"The Meta server's list can't be read: {exc}") from exc
        if answer.following is None:
            return images
        answer = await server.page(f"/images/detail?{answer.following}")
    raise MetadataUnavailable("The Meta server's list has no end")


def _key(image: Any) -> str:
    """An image that is listed for everybody and for its owner is one; what has no id is itself."""
    return str(image["_id"]) if isinstance(image, dict) and isinstance(image.get("_id"), str) else repr(image)
