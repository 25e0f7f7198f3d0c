"""One bucket of an S3 service: signed requests, path style, tried again where that is safe.

Redirects are never followed: a signature is good for one path of one server.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
import structlog
import trio

from ..errors import StoreError, StoreUnreachable
from ..outbound import Outbound, OutboundError, RequestBody, Response, StaleConnection, Untrusted
from .s3_answers import Element, parse, refusal, true_status
from .s3_dialect import Dialect
from .s3_signing import EMPTY_SHA256, Signer
from .trust import untrusted

TRIES: Final = 5
BASE_SECONDS: Final = 0.25  # the first delay is up to this long; each further one up to twice as long
LONGEST_SECONDS: Final = 8.0
HEAD_SECONDS: Final = 60.0  # for an answer's head: a service under load takes its time
ANSWER_LIMIT: Final = 4 * 1024 * 1024  # bytes of an answer in XML; a list of 1000 objects has about 0.4 MB

_jitter: Final = random.SystemRandom()
_log: Final = structlog.get_logger("visor_gateway.s3")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, which may be sent more than once.

    Attributes:
        key: The object's key; "" for the bucket itself.
        query: Parameters.
        body: Makes the body anew for every try.
        digest: Hex SHA-256 of the body, or `UNSIGNED`.
        taken: Statuses beside 2xx that the caller judges itself.
        head_seconds: Seconds for the head of the answer.
    """

    method: str
    key: str = ""
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: Callable[[], RequestBody] | None = None
    digest: str = EMPTY_SHA256
    taken: frozenset[int] = frozenset()
    head_seconds: float = HEAD_SECONDS

    def changed(self, **changes: Any) -> Call:
        """A request like this one but for `changes`."""
        return msgspec.structs.replace(self, **changes)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer.

    Attributes:
        status: Its status, or what it should have been (`true_status`).
        head: Its head; the body was read and the answer closed.
        content: The body.
        tries: How often the request was sent. An earlier try may have been heard, though it was not answered.
    """

    status: int
    head: Response
    content: bytes
    tries: int


class Bucket:
    """Requests to one bucket.

    Args:
        outbound: The way out. The caller closes it.
        endpoint: URL of the service, without a slash at its end.
        name: The store's name, for messages.
    """

    def __init__(
        self, outbound: Outbound, dialect: Dialect, endpoint: str, bucket: str, signer: Signer, *, name: str
    ) -> None:
        self.dialect = dialect
        self.signer = signer
        self.bucket = bucket
        self.name = name
        #: Whether bodies are signed: under TLS the connection already proves that nobody changed them.
        self.signs_bodies = signer.signs_bodies and not endpoint.startswith("https:")
        self._outbound = outbound
        self._url = f"{endpoint.removesuffix(dialect.path)}{dialect.path}/{quote(bucket)}"

    async def ask(self, call: Call, *, tries: int = TRIES, on_retry: Callable[[], None] | None = None) -> Answer:
        """Send a request and read the whole answer.

        Raises:
            StoreError: The service refused the request, or failed `tries` times.
        """
        for number, delay in enumerate(_delays(tries), start=1):
            try:
                answer = await self._ask_once(call, number)
                if 200 <= answer.status < 300 or answer.status in call.taken:
                    return answer
                found = refusal(self.name, answer.status, answer.content)
                error, passing = found.error, found.passing
            except OutboundError as exc:
                error, passing = self.unreachable(exc), not isinstance(exc, Untrusted)
            if not passing or delay is None:
                raise error
            await self.wait_before_retry(error, delay, on_retry)
        raise AssertionError("the last try raises or returns")

    async def ask_for_xml(
        self, call: Call, *, tries: int = TRIES, on_retry: Callable[[], None] | None = None
    ) -> tuple[Element, Answer]:
        """`ask`, and the root of the answer."""
        answer = await self.ask(call, tries=tries, on_retry=on_retry)
        return self.parsed(answer), answer

    def parsed(self, answer: Answer) -> Element:
        """The root of an answer. One that is no XML is a failure of the service."""
        try:
            return parse(answer.content)
        except ValueError as exc:
            raise self.nonsense() from exc

    def refused(self, answer: Answer) -> StoreError:
        """What an answer means that is an error."""
        return refusal(self.name, answer.status, answer.content).error

    async def open(self, call: Call, *, tries: int) -> Response:
        """Send a request and leave the body of its answer to the caller, who closes it. Statuses as in `ask`."""
        for delay in _delays(tries):
            try:
                response, _ = await self._send(call)
                if response.status in {200, 206} or response.status in call.taken:
                    return response
                found = refusal(self.name, response.status, await self._content(response))
                error, passing = found.error, found.passing
            except OutboundError as exc:
                error, passing = self.unreachable(exc), not isinstance(exc, Untrusted)
            if not passing or delay is None:
                raise error
            await self.wait_before_retry(error, delay, None)
        raise AssertionError("the last try raises or returns")

    def unreachable(self, cause: OutboundError) -> StoreUnreachable:
        """What a failed exchange means to those above. The cause is kept for the operator."""
        _log.debug("request failed", store=self.name, cause=str(cause))
        if isinstance(cause, Untrusted):
            return untrusted(self.name, cause)
        error = StoreUnreachable(f"The store '{self.name}' does not answer as it should")
        error.__cause__ = cause
        return error

    def nonsense(self) -> StoreUnreachable:
        return StoreUnreachable(f"The store '{self.name}' gives an answer that can't be read")

    async def wait_before_retry(self, error: StoreError, delay: float, on_retry: Callable[[], None] | None) -> None:
        """The pause before the next try."""
        _log.info("request is tried again", store=self.name, error=error.message)
        if on_retry is not None:
            on_retry()
        await trio.sleep(delay)

    async def _ask_once(self, call: Call, number: int) -> Answer:
        response, sent = await self._send(call)
        content = await self._content(response)
        return Answer(
            status=true_status(response.status, content), head=response, content=content, tries=number + sent - 1
        )

    async def _send(self, call: Call) -> tuple[Response, int]:
        """The head of the answer, and how often the request was sent to get it."""
        path = f"/{quote(call.key)}" if call.key else ""
        url = f"{self._url}{path}{_query(call.query)}"
        sent = 0
        while True:
            sent += 1
            headers = self.signer.sign(call.method, url, dict(call.headers), call.digest)
            try:
                response = await self._outbound.open(
                    call.method,
                    url,
                    headers,
                    body=None if call.body is None else call.body(),
                    follow=False,
                    head_seconds=call.head_seconds,
                )
            except StaleConnection:
                # Ends: each turn uses up one idle connection of the pool. The request may have been heard all the same.
                continue
            return response, sent

    async def _content(self, response: Response) -> bytes:
        content = bytearray()
        try:
            while data := await response.stream.receive_some():
                content += data
                if len(content) > ANSWER_LIMIT:
                    raise self.nonsense()
        finally:
            await response.aclose()
        return bytes(content)


def _query(parameters: Mapping[str, str]) -> str:
    """A query as signatures of version 2 have it: no `=` after a parameter without value."""
    written = [f"{name}={quote(value, safe='')}" if value else name for name, value in parameters.items()]
    return f"?{'&'.join(written)}" if written else ""


def _delays(tries: int) -> Iterator[float | None]:
    """Seconds to wait after each failed try, with jitter over all of them; None after the last."""
    for number in range(tries - 1):
        yield _jitter.uniform(0.0, min(LONGEST_SECONDS, BASE_SECONDS * 2.0**number))
    yield None
