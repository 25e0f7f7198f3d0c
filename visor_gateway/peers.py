"""Gateways on one PostgreSQL as one view: who they are, what each of them moves, and how they are asked.

Each gateway is the center of its own transfers. Of every other one it reads the live channel, as a subscriber that is
given own transfers alone, and shows what it hears there as a part of its own view (`transfer.peer_view`); what a client
asks of such a transfer is asked of its gateway. The database holds only who is there. While it is away, nobody
new is found, and those who are connected stay so.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
import trio

from . import errors
from .client import KeyPair, Timing, VisorError
from .client.credentials import Signer
from .client.network import Origin
from .client.session import Session, default_tls, segment
from .client.websocket_trio import TrioSocket, connected
from .errors import GatewayError
from .meta.gateways import Member, PeerKeys, SqlGatewayRepository
from .outbound import BadResponse, BytesBody, Outbound, OutboundError
from .transfer.foreign import PeerUnavailable, Wish, checked_answer
from .transfer.hub import Hub
from .transfer.peer_view import NotUnderstood, PeerView

RENEW_SECONDS: Final = 5.0
LEASE_SECONDS: Final = 15.0
LEAVE_SECONDS: Final = 2.0
#: From the loss of a connection to the end of what it showed: a gateway that is upgraded is back sooner.
GRACE_SECONDS: Final = 2.0
#: Between two tries to connect: doubled from the first to the second.
PAUSE_SECONDS: Final = (0.1, 2.0)
PING_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 3.0  # for the answer to a ping
UNHEARD_SECONDS: Final = (
    15.0  # without a message, where one is asked for every ten seconds: what answers pings may live on
)
#: What no event tells, such as another limit, is seen after so long.
SNAPSHOT_SECONDS: Final = 10.0
SECOND_SNAPSHOT_SECONDS: Final = 1.0  # after the first of a connection, which may not be complete
ASK_SECONDS: Final = 15.0  # more than a gateway waits for a transfer that it cancels
MESSAGE_LIMIT: Final = 16 << 20
ANSWER_LIMIT: Final = 16 << 20

_TIMING: Final = Timing(connect=3.0, answer=5.0)
_SUBSCRIBE: Final = '{"type":"subscribe","hz":2}'
_REFUSALS: Final[dict[int, type[GatewayError]]] = {
    400: errors.InvalidRequest, 403: errors.Forbidden, 404: errors.NotFound, 409: errors.Conflict,
}  # fmt: skip

_log: Final = structlog.get_logger("visor_gateway.peers")


class _Silent(Exception):
    """Nothing comes, or nothing came back for a ping."""


class _Refused(msgspec.Struct):
    status: int
    message: str


class _Answer(msgspec.Struct):
    transfers: list[dict[str, Any]] = []
    refused: _Refused | None = None


class Peers:
    """The other gateways, and this one's place among them."""

    def __init__(
        self,
        hub: Hub,
        gateways: SqlGatewayRepository,
        keys: PeerKeys,
        servers: Outbound,
        member: Member,
        *,
        is_succeeded: Callable[[], bool],
    ) -> None:
        """
        Args:
            servers: The way to other gateways.
            member: This one.
            is_succeeded: Whether another process has taken over at the end: this one's place is left to it.
        """
        self._hub = hub
        self._gateways = gateways
        self._keys = keys
        self._servers = servers
        self._member = member
        self._is_succeeded = is_succeeded
        self._links: dict[tuple[str, str], trio.CancelScope] = {}
        self._entered = True

    async def serve(self) -> None:
        """Be among them until cancelled; then leave."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    try:
                        async with self._gateways.news() as news:
                            while True:
                                self._follow(await self._renewed(), nursery)
                                with trio.move_on_after(RENEW_SECONDS):
                                    await news.wait()
                    except GatewayError as error:
                        _log.warning("other gateways can't be looked for", error=error.message)
                        await trio.sleep(RENEW_SECONDS)
            finally:
                with trio.move_on_after(LEAVE_SECONDS, shield=True):
                    await self._leave()

    async def _renewed(self) -> Sequence[Member]:
        entered, others = await self._gateways.renew(self._member, LEASE_SECONDS)
        if self._entered and not entered:
            _log.error("another gateway has this name: this one is seen by no other", gateway=self._member.name)
        self._entered = entered
        return others

    async def _leave(self) -> None:
        if self._is_succeeded():
            return
        try:
            await self._gateways.leave(self._member)
        except GatewayError:
            return  # the lease ends by itself

    def _follow(self, members: Sequence[Member], nursery: trio.Nursery) -> None:
        wanted = {(each.name, each.peer_url) for each in members}
        for place in self._links.keys() - wanted:
            self._links.pop(place).cancel(reason="the gateway has gone")
        for place in wanted - self._links.keys():
            scope = self._links[place] = trio.CancelScope()
            nursery.start_soon(self._watch, *place, scope)

    async def _watch(self, name: str, peer_url: str, scope: trio.CancelScope) -> None:
        with scope:
            await PeerLink(self._hub, self._keys, self._servers, name, peer_url).run()


class PeerLink:
    """One other gateway (`transfer.foreign.Peer`).

    Attributes:
        gateway: Its name.
    """

    def __init__(self, hub: Hub, keys: PeerKeys, servers: Outbound, gateway: str, peer_url: str) -> None:
        self.gateway = gateway
        self._keys = keys
        self._servers = servers
        self._url = peer_url
        self._path = f"/peers/{segment(gateway)}/transfers"
        self._view = PeerView(hub, self)
        self._patience = trio.CancelScope()
        self._is_seen = False
        self._complaint = ""
        self._tls: ssl.SSLContext | None = None

    async def run(self) -> None:
        """Show what it moves, until cancelled. Whatever happens to it is no failure here."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forget_in_time)
                await self._stay_connected()
        finally:
            self._view.clear()

    async def _stay_connected(self) -> None:
        pause = PAUSE_SECONDS[0]
        while True:
            complaint = await self._listen()
            if self._is_seen:
                _log.info("gateway lost", gateway=self.gateway, error=complaint)
                self._is_seen = False
                self._patience.deadline = trio.current_time() + GRACE_SECONDS
                pause = PAUSE_SECONDS[0]
            elif complaint != self._complaint:
                _log.warning("gateway can't be reached", gateway=self.gateway, error=complaint)
                self._complaint = complaint
            await trio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])

    async def _forget_in_time(self) -> None:
        while True:
            with trio.CancelScope() as self._patience:
                await trio.sleep_forever()
            self._view.clear()

    async def _listen(self) -> str:
        """Take what it tells. Returns why it does not any more."""
        try:
            async with (
                self._session() as session,
                connected(session, path=f"{self._path}/ws", message_limit=MESSAGE_LIMIT) as socket,
            ):
                return await self._converse(socket)
        except VisorError as exc:
            return str(exc)
        except NotUnderstood as exc:
            return f"what it sent is {exc}"
        except _Silent:
            return "it is silent"
        except Exception as exc:
            # Another gateway must not end this one.
            _log.exception("gateway can't be watched", gateway=self.gateway)
            return type(exc).__name__

    async def _converse(self, socket: TrioSocket) -> str:
        failure: Exception | None = None
        self._view.reconnected()
        async with trio.open_nursery() as nursery:

            async def guarded(work: Any) -> None:
                nonlocal failure
                try:
                    await work(socket)
                except (VisorError, NotUnderstood, _Silent) as exc:
                    # Carried out of the nursery as it is, not wrapped into a group.
                    failure = failure or exc
                nursery.cancel_scope.cancel(reason="the connection is of no use any more")

            for work in (self._ping, self._refresh, self._hear):
                nursery.start_soon(guarded, work)
        if failure is not None:
            raise failure
        return "it said goodbye"

    async def _hear(self, socket: TrioSocket) -> None:
        while True:
            text: str | None = ""
            with trio.move_on_after(UNHEARD_SECONDS):
                text = await socket.receive()
            if text is None:
                return
            if not text:
                raise _Silent
            if self._view.take(text) == "snapshot" and not self._is_seen:
                self._is_seen, self._complaint = True, ""
                self._patience.deadline = float("inf")
                _log.info("gateway seen", gateway=self.gateway)

    async def _ping(self, socket: TrioSocket) -> None:
        while True:
            with trio.move_on_after(SILENT_SECONDS) as waited:
                await socket.ping()
            if waited.cancelled_caught:
                raise _Silent
            await trio.sleep(PING_SECONDS)

    async def _refresh(self, socket: TrioSocket) -> None:
        await trio.sleep(SECOND_SNAPSHOT_SECONDS)
        while True:
            await socket.send(_SUBSCRIBE)
            await trio.sleep(SNAPSHOT_SECONDS)

    # --- asking ----------------------------------------------------------------------------------

    async def ask(self, wish: Wish) -> list[dict[str, Any]]:
        """As `Peer.ask`."""
        answer: _Answer | None = None
        with trio.move_on_after(ASK_SECONDS):
            answer = await self._asked(wish)
        if answer is None:
            raise PeerUnavailable(self.gateway)
        if answer.refused is not None:
            refusal = _REFUSALS.get(answer.refused.status)
            raise refusal(answer.refused.message[:500]) if refusal else PeerUnavailable(self.gateway)
        try:
            return checked_answer(answer.transfers, self.gateway)
        except msgspec.ValidationError as exc:
            raise PeerUnavailable(self.gateway) from exc

    async def _asked(self, wish: Wish) -> _Answer:
        content = msgspec.json.encode(wish)
        digest = base64.b64encode(hashlib.sha256(content).digest())
        headers = [(b"content-type", b"application/json"), (b"content-digest", b"sha-256=:%s:" % digest)]
        headers += Signer(KeyPair(*self._keys.own())).headers("POST", self._path.encode(), headers)
        sent = {name.decode(): value.decode() for name, value in headers} | {"connection": "close"}
        try:
            url, body = f"{self._url}{self._path}", BytesBody(content)
            async with self._servers.request("POST", url, sent, body=body, head_seconds=ASK_SECONDS) as response:
                if response.status != HTTPStatus.OK:
                    raise BadResponse(f"it answers {response.status}")
                found = bytearray()
                async for block in response.stream:
                    found += block
                    if len(found) > ANSWER_LIMIT:
                        raise BadResponse("its answer is too long")
            return msgspec.json.decode(found, type=_Answer)
        except (OutboundError, msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            _log.warning("gateway did not answer", gateway=self.gateway, error=str(exc))
            raise PeerUnavailable(self.gateway) from exc

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session, None]:
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(default_tls, Origin(self._url))
        session = Session(self._url, KeyPair(*self._keys.own()), tls=self._tls, timing=_TIMING)
        try:
            yield session
        finally:
            with trio.move_on_after(1, shield=True):
                await session.aclose()
