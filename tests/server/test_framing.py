"""How answers are framed: h11, as a client, reads back what was meant, and what can't be framed is refused."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visor_gateway.server.framing import KNOWN, Framing, IllegalAnswer, well_formed

LENGTH = (b"content-length", b"5")


def framing(method: str = "GET", version: str = "1.1", *, persistent: bool = True) -> Framing:
    return Framing(method=method, version=version, persistent=persistent)


def read_back(method: str, sent: bytes) -> tuple[h11.Response, bytes, bool]:
    """The answer that a client reads, its body, and whether it ended without the connection's end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(sent)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    ended = isinstance(event, h11.EndOfMessage)
    if not ended:
        client.receive_data(b"")
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
    return response, body, ended


@given(
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    version=st.sampled_from(["1.0", "1.1"]),
    status=st.sampled_from([200, 204, 206, 304, 404, 503]),
    pieces=st.lists(st.binary(max_size=20), max_size=4),
    known=st.booleans(),
    last=st.booleans(),
)
def test_a_client_reads_what_the_application_said(
    method: str, version: str, status: int, pieces: list[bytes], known: bool, last: bool
) -> None:
    ours = framing(method, version)
    length = [(b"Content-Length", b"%d" % sum(map(len, pieces)))] if known else []
    sent = ours.begin(status, [(b"x-a", b"\xc3\xa9 b"), *length], last=last)
    for piece in pieces:
        sent += b"".join(ours.body(piece))
    sent += b"".join(ours.end())
    response, body, ended = read_back(method, sent)
    assert response.status_code == status
    headers = dict(response.headers)
    assert headers[b"x-a"] == b"\xc3\xa9 b"
    assert b"date" in headers
    bodiless = method == "HEAD" or status in {204, 304}
    assert body == (b"" if bodiless else b"".join(pieces))
    assert ours.ended
    assert ours.persistent == (b"connection" not in headers)
    if not ended:
        assert (version, known, ours.persistent) == ("1.0", False, False)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"1\r\nset-cookie: b"),
        (b"x-a", b"1\nb"),
        (b"x-a", b"1\rb"),
        (b"x-a", b"1\0"),
        (b"x-a", b"1\x0b2"),
        (b"x a", b"1"),
        (b"x-a:", b"1"),
        (b"x-a: b\r\ny", b"1"),
        (b"", b"1"),
        (b"x-\xc3\xa9", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"Transfer-Encoding", b"gzip"),
        (b"content-length", b"-1"),
        (b"content-length", b"5, 5"),
        (b"Content-Length", b"5"),
    ],
)
def test_headers_that_could_be_read_in_two_ways_are_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(IllegalAnswer):
        framing().begin(200, [LENGTH, header], last=False)


@pytest.mark.parametrize("size", [4, 6])
def test_a_body_has_the_length_that_was_announced(size: int) -> None:
    def send(ours: Framing, step: Callable[[Framing], object]) -> None:
        ours.begin(200, [LENGTH], last=False)
        step(ours)
        ours.end()

    for step in (lambda ours: ours.body(bytes(size)), lambda ours: ours.pass_by(size)):
        ours = framing()
        with pytest.raises(IllegalAnswer):
            send(ours, step)
        assert not ours.ended


def test_a_body_can_be_sent_by_others_in_part() -> None:
    ours = framing()
    ours.begin(200, [LENGTH], last=False)
    ours.pass_by(4)
    assert ours.body(b"x") == [b"x"]
    assert ours.end() == []
    assert ours.ended


def test_only_a_body_of_known_length_can_be_sent_by_others() -> None:
    ours = framing()
    ours.begin(200, [], last=False)
    with pytest.raises(IllegalAnswer):
        ours.pass_by(1)


def test_messages_out_of_order_are_refused() -> None:
    for step in (lambda ours: ours.body(b""), lambda ours: ours.end(), lambda ours: ours.pass_by(0)):
        with pytest.raises(IllegalAnswer):
            step(framing())
    ours = framing()
    ours.begin(200, [LENGTH], last=False)
    with pytest.raises(IllegalAnswer):
        ours.begin(200, [LENGTH], last=False)
    ours.body(b"12345")
    ours.end()
    for step in (lambda: ours.body(b""), ours.end):
        with pytest.raises(IllegalAnswer):
            step()


def test_an_answer_to_a_client_that_leaves_says_so() -> None:
    ours = framing(persistent=False)
    assert b"\r\nconnection: close\r\n" in ours.begin(200, [LENGTH], last=False)
    ours = framing()
    ours.begin(426, [LENGTH, (b"connection", b"upgrade, close")], last=False)
    assert not ours.persistent


def test_a_switch_of_protocols_has_nothing_added() -> None:
    ours = framing()
    assert ours.begin(101, [(b"upgrade", b"websocket"), (b"connection", b"upgrade")], last=True) == (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    )


def test_of_the_headers_only_those_are_kept_that_are_asked_for_later() -> None:
    answer = framing()
    more = [(b"x-image-meta-%d" % number, b"value") for number in range(20)]
    answer.begin(200, [LENGTH, *more, (b"X-Transfer-Id", b"one"), (b"content-type", b"text/plain")], last=False)
    assert answer.named == {b"content-type": b"text/plain", b"x-transfer-id": b"one"}


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\nb"])
def test_a_malformed_name_is_refused_each_time_and_among_names_that_are_known(name: bytes) -> None:
    for _ in range(2):
        framing().begin(200, [LENGTH], last=False)
        with pytest.raises(IllegalAnswer, match="malformed"):
            framing().begin(200, [LENGTH, (name, b"value")], last=False)


def test_names_are_remembered_up_to_a_bound() -> None:
    for number in range(2 * KNOWN):
        framing().begin(200, [(b"x-%d" % number, b"value")], last=False)
    assert len(well_formed) <= KNOWN
