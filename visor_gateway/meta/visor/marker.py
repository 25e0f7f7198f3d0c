"""One gateway for a catalogue: a record at the server that says who has it.

A Meta server can't change a record under a condition, so this is no lock. Each gateway has a marker of its own, a
private record that it renews. One that starts watches the markers of others: where one is renewed while it looks, it
gives up; one that is not for `WATCH_SECONDS` is of a gateway that is gone, and is removed. Clocks are not compared.
"""

from __future__ import annotations

from typing import Final

import trio

from ... import visor_documents as documents
from ...errors import ConfigError, MetadataUnavailable
from ...visor_documents import ImageDocument, InvalidDocument
from .server import VisorServer

#: Owner of markers; nobody's access key, as it is never given credentials.
OWNER: Final = "visor-gateway.marker"
RENEW_SECONDS: Final = 5.0
WATCH_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 2.0
_INSTANCE: Final = "instance"
_RENEWALS: Final = "renewals"


class Marker:
    """This gateway's marker."""

    def __init__(self, server: VisorServer) -> None:
        self._server = server
        self._instance = ""
        self._id = ""
        self._renewals = 0
        self._lost = False
        self.watch_seconds = WATCH_SECONDS
        self.look_seconds = _LOOK_SECONDS

    async def claim(self, instance: str) -> None:
        """Take the catalogue for the gateway of that id, which may have had it before.

        Raises:
            ConfigError: Another gateway has it.
            MetadataUnavailable: The server can't be asked.
        """
        self._instance = instance
        await self._watch_others()
        mine = [one for one in await self._markers() if one.attributes.get(_INSTANCE) == instance]
        if mine:
            self._id = mine[0].id
            renewals = mine[0].attributes.get(_RENEWALS, "")
            self._renewals = int(renewals) if renewals.isascii() and renewals.isdigit() and len(renewals) < 16 else 0
            await self.renew()
            self.check()
        else:
            try:
                self._id = (await self._put("POST", "/images")).id
            except LookupError as exc:
                raise MetadataUnavailable("The Meta server has no images: is it one?") from exc
        # Of two that began at once, the one whose marker comes first goes on.
        if any(one.id < self._id for one in await self._others()):
            await self._server.ask("DELETE", f"/images/{self._id}")
            raise self._taken()

    async def _watch_others(self) -> None:
        before = {one.id: one for one in await self._others()}
        deadline = trio.current_time() + self.watch_seconds
        while before and trio.current_time() < deadline:
            await trio.sleep(self.look_seconds)
            for one in await self._others():
                if one.id not in before or one.attributes != before[one.id].attributes:
                    raise self._taken()
        for gone in before:
            await self._server.ask("DELETE", f"/images/{gone}")

    def _taken(self) -> ConfigError:
        return ConfigError(
            f"[metadata] url: expected a catalogue without another gateway: one writes to that of {self._server.name}"
        )

    async def renew(self) -> None:
        """Say that this gateway is still there. Raises `MetadataUnavailable`."""
        self._renewals += 1
        try:
            document = await self._put("PUT", f"/images/{self._id}")
        except LookupError:
            self._lost = True
            return
        if document.attributes.get(_INSTANCE) != self._instance:
            self._lost = True

    def check(self) -> None:
        """Raises `MetadataUnavailable` once another gateway took the catalogue."""
        if self._lost:
            raise MetadataUnavailable("The catalogue was taken by another gateway: this one must be restarted")

    async def _put(self, method: str, path: str) -> ImageDocument:
        fields = {_INSTANCE: self._instance, _RENEWALS: str(self._renewals)}
        named = {"name": "visor-gateway", "architecture": "x86_64", "access": "private", "owner": OWNER}
        answer = await self._server.ask(method, path, documents.image_request(named | fields))
        if answer.status == 404:
            raise LookupError(path)
        if answer.status != 200:
            raise MetadataUnavailable(f"The Meta server refuses a marker: status {answer.status}")
        try:
            return documents.read_image(answer.body)
        except InvalidDocument as exc:
            raise MetadataUnavailable("The Meta server's answer can't be read") from exc

    async def _markers(self) -> list[ImageDocument]:
        answer = await self._server.list("/images/detail", {"owner": OWNER})
        if answer.status == 404:
            return []
        if answer.status != 200:
            raise MetadataUnavailable(f"The Meta server refuses a list: status {answer.status}")
        try:
            found, _ = documents.read_images(answer.body)
        except InvalidDocument as exc:
            raise MetadataUnavailable("The Meta server's list can't be read") from exc
        return [one for one in found if one.owner == OWNER]

    async def _others(self) -> list[ImageDocument]:
        return [one for one in await self._markers() if one.attributes.get(_INSTANCE) != self._instance]
