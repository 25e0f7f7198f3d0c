"""A process among the generations of its gateway: how it begins, how it is succeeded, and how it lives on afterwards.

The youngest is the gateway. It alone accepts connections, sweeps, scrubs, writes `admin.toml`, keeps the history and
speaks to the service manager. An older one finishes the transfers that it has, as a member of the youngest one's bus.
It keeps its listening sockets without accepting on them, so that connections wait and nobody is refused when the
youngest one dies: then it starts another one in its place.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import structlog
import trio

from . import __version__
from .control import ControlSocket, Request, connect, receive_line, send_line
from .datadir import Held
from .errors import ConfigError, Conflict, GatewayError
from .predecessors import Predecessors
from .server import systemd
from .succession import Predecessor, Successor, UpgradeFailed, start_successor
from .transfer.draining import DrainingMember, DrainingProcess

JOIN_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.1  # between two looks for the youngest generation
VACANT_SECONDS: Final = 3.0  # before one takes care of it that was not the last: the last one is told by the kernel
LONGEST_SECONDS: Final = 30.0  # between two tries to start a process in the place of one that died
DEPART_SECONDS: Final = 2.0

_log: Final = structlog.get_logger("visor_gateway.generations")


class ServingProcess(DrainingProcess, Protocol):
    """What a process does as the gateway, and as an older generation."""

    @property
    def predecessors(self) -> Predecessors | None:
        """Where older generations are members, if there may be any."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether it drains."""
        ...

    def listening(self) -> Mapping[int, str]:
        """Duplicates of the listening sockets' descriptors, with names. The caller closes them."""
        ...

    @property
    def owns_names(self) -> bool:
        """Whether names of Unix sockets are to be removed by who stops last."""
        ...

    def retire(self) -> None:
        """Accept nothing any more; finish what runs, however long it takes."""
        ...

    def complain(self, what: str) -> None:
        """Say in the status that something is wrong."""
        ...

    def draining_member(self) -> DrainingMember:
        """What speaks for its transfers at another bus."""
        ...

    def joined(self, member: DrainingMember) -> None:
        """Ask the youngest generation what concerns the gateway."""
        ...

    def left(self) -> None:
        """Ask nobody any more: the youngest generation is gone."""
        ...


class Generations:
    """This process's place among them."""

    def __init__(self, held: Held, predecessor: Predecessor | None) -> None:
        self.predecessor = predecessor
        self._held = held
        self._instance = str(uuid.uuid4())
        self._control = ControlSocket(held.directory.control, self._answer)
        self._process: ServingProcess | None = None
        self._upgrading = False
        self._answering = 0  # those who asked for an upgrade and wait for what comes of it
        self._listening: Mapping[int, str] = {}
        self._successor: Successor | None = None
        self._member: DrainingMember | None = None
        self._retired = False
        self._finishing = False
        self._hopeless = False
        self._changed = trio.Event()

    # --- the youngest ----------------------------------------------------------------------------

    async def become_gateway(self) -> None:
        """Wait for the word of the predecessor, if there is one; then be the gateway. `became_gateway` confirms it.

        Raises:
            ConfigError: It decided otherwise, or the control socket can't be made.
        """
        if self.predecessor is not None:
            await self.predecessor.propose()
        self._control.listen()
        self._held.sign()

    def became_gateway(self) -> None:
        """Connections are accepted."""
        if self.predecessor is not None:
            self.predecessor.confirm()

    async def serve(self, process: ServingProcess) -> None:
        """Answer on the control socket, until cancelled."""
        self._process = process
        await self._control.serve()

    def close(self) -> None:
        """Let go of all that is held here."""
        for fd in self._listening:
            os.close(fd)
        self._listening = {}
        if self._successor is not None:
            self._successor.close()
            self._successor = None

    async def _answer(self, request: Request, stream: trio.SocketStream) -> None:
        process = self._process
        if request.get("ask") == "upgrade":
            self._answering += 1
            try:
                await self._answer_upgrade(stream)
            finally:
                self._answering -= 1
                self._tell()
        elif request.get("ask") == "join" and process is not None and process.predecessors is not None:
            await process.predecessors.attend(request, stream)

    async def _answer_upgrade(self, stream: trio.SocketStream) -> None:
        try:
            successor = await self._upgrade()
        except GatewayError as error:
            await send_line(stream, done=False, reason=error.message)
        else:
            await send_line(stream, done=True, pid=successor.pid, version=successor.version)

    async def _upgrade(self) -> Successor:
        process = self._process
        if process is None or process.is_stopping:
            raise Conflict("the gateway is stopping, or another process has taken over")
        if self._upgrading:
            raise Conflict("an upgrade is under way")
        self._upgrading = True
        try:
            return await self._succeeded(process)
        except GatewayError as error:
            _log.error("upgrade failed, this process goes on", error=error.message)
            process.complain(f"upgrade failed: {error.message}")
            raise
        finally:
            self._upgrading = False

    async def _succeeded(self, process: ServingProcess) -> Successor:
        """Have another process take this one's place."""
        if not self._listening:
            self._listening = process.listening()
        _log.info("starting the process that takes over")
        successor = await start_successor(self._listening, self._held.fd)
        try:
            await successor.ready()
            self._demand_not_stopping(process)
            await successor.take_over(owns_names=process.owns_names)
        except BaseException:
            successor.give_up()
            if not self._retired:
                with suppress(ConfigError):  # the other one may have taken the name
                    self._control.listen()
                    self._held.sign()
            raise
        self._hand_over(process, successor)
        # The manager must know the new process before this one can end.
        await trio.to_thread.run_sync(systemd.barrier)
        return successor

    def _demand_not_stopping(self, process: ServingProcess) -> None:
        if not self._retired and process.is_stopping:
            raise Conflict("the gateway is stopping")

    def _hand_over(self, process: ServingProcess, successor: Successor) -> None:
        _log.info("succeeded", pid=successor.pid, version=successor.version, by_version_of=__version__)
        self._control.close()
        systemd.notify(f"MAINPID={successor.pid}")
        if self._successor is not None:
            self._successor.close()
        self._successor = successor
        if not self._retired:
            self._retired = True
            if process.predecessors is not None:
                process.predecessors.release()
            process.retire()

    # --- an older one ----------------------------------------------------------------------------

    async def outlive(self, process: ServingProcess) -> None:
        """Be a member of the youngest one's bus, whichever process that is, until cancelled."""
        vacant, delay = 0.0, AGAIN_SECONDS
        while True:
            stream = await self._joined()
            if stream is not None:
                vacant, delay = 0.0, AGAIN_SECONDS
                await self._stay(process, stream)
                continue
            if not self._finishing and (vacant >= VACANT_SECONDS or await self._has_died()):
                self._hopeless = not await self._fill(process)
                if self._hopeless:
                    self._tell()
                    await trio.sleep(delay)
                    delay = min(2 * delay, LONGEST_SECONDS)
                continue
            await trio.sleep(AGAIN_SECONDS)
            vacant += AGAIN_SECONDS

    def finish(self) -> None:
        """The gateway stops: nobody takes anybody's place any more."""
        self._finishing = True
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def depart(self) -> None:
        """Wait until there is a youngest one, and tell it what this one has counted.

        Raises:
            UpgradeFailed: There is none, and none can be started.
        """
        while self._answering:
            await self._changed.wait()
        while self._member is None and not self._finishing:
            if self._hopeless:
                raise UpgradeFailed("the process that had taken over has died, and none could be started in its place")
            await self._changed.wait()
        if self._member is not None:
            with trio.move_on_after(DEPART_SECONDS), suppress(GatewayError):
                await self._member.depart()

    async def _joined(self) -> trio.SocketStream | None:
        stream: trio.SocketStream | None = None
        with trio.move_on_after(JOIN_SECONDS), suppress(OSError, trio.BrokenResourceError):
            stream = await connect(self._held.directory.control)
            await send_line(stream, ask="join", instance=self._instance, pid=os.getpid(), version=__version__)
            answer = await receive_line(stream)
            if answer is not None and answer.get("welcome"):
                return stream
        if stream is not None:
            await trio.aclose_forcefully(stream)
        return None

    async def _stay(self, process: ServingProcess, stream: trio.SocketStream) -> None:
        def joined(member: DrainingMember) -> None:
            process.joined(member)
            self._member = member
            self._tell()

        try:
            await process.draining_member().stay(stream, joined)
        finally:
            self._member = None
            process.left()

    async def _has_died(self) -> bool:
        """Whether the process that succeeded this one has ended."""
        if self._successor is None:
            return False
        with trio.move_on_after(0.01) as waited:
            await self._successor.wait_ended()
        return not waited.cancelled_caught

    async def _fill(self, process: ServingProcess) -> bool:
        """Start another process in the place of the youngest one, which died. Whether there is one now."""
        with self._alone() as alone:
            if not alone:
                await trio.sleep(AGAIN_SECONDS)
                return True  # another one is at it
            stream = await self._joined()
            if stream is not None:
                await trio.aclose_forcefully(stream)
                return True
            _log.error("the process that had taken over has died, another one is started")
            try:
                await self._succeeded(process)
            except GatewayError as error:
                _log.error("no process could be started in its place", error=error.message)
                return False
        return True

    @contextmanager
    def _alone(self) -> Generator[bool]:
        """Whether no other generation does the same at this moment."""
        with self._held.directory.succession.open("a") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
