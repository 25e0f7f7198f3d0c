"""The bus, over streams in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from visor_gateway.errors import Conflict, GatewayError, NotFound
from visor_gateway.transfer import link as links
from visor_gateway.transfer.bus import Bus, Command, MemberGone, Topic
from visor_gateway.transfer.link import BrokenFrame, FrameReader, Interest, encode

NEWS = Topic("news", str)
DOUBLE = Command("double", int, int)
LATER = Command("later", int, int)


@asynccontextmanager
async def joined(*members: tuple[str, Bus], center: Bus) -> AsyncGenerator[trio.Nursery, None]:
    """A star of buses; members know the center as "center"."""
    async with trio.open_nursery() as nursery:
        for name, bus in members:
            here, there = trio.testing.memory_stream_pair()
            await nursery.start(center.attach, name, here)
            await nursery.start(bus.attach, "center", there)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


async def test_what_is_published_reaches_all_who_subscribed_and_nobody_else() -> None:
    center, one, two = Bus(), Bus(), Bus()
    heard: list[tuple[str, str, str]] = []
    one.subscribe(NEWS, lambda member, text: heard.append(("one", member, text)))
    async with joined(("one", one), ("two", two), center=center):
        center.publish(NEWS, "hello")
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [("one", "center", "hello")]
        two.subscribe(NEWS, lambda member, text: heard.append(("two", member, text)))
        await trio.testing.wait_all_tasks_blocked()
        center.publish(NEWS, "both")
        center.publish(NEWS, "second alone", to="two")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(heard[1:]) == [
            ("one", "center", "both"),
            ("two", "center", "both"),
            ("two", "center", "second alone"),
        ]
        assert set(center.members) == {"one", "two"}


async def test_a_center_that_relays_hands_on_what_members_publish_but_not_back() -> None:
    center, one, two = Bus(relays=True), Bus(), Bus()
    heard: list[str] = []
    for name, bus in (("center", center), ("one", one), ("two", two)):
        bus.subscribe(NEWS, lambda member, text, name=name: heard.append(f"{name} {text}"))
    async with joined(("one", one), ("two", two), center=center):
        one.publish(NEWS, "x")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(heard) == ["center x", "two x"]


async def test_commands_are_answered_and_errors_come_back_as_what_they_were() -> None:
    center, one = Bus(), Bus()

    def double(member: str, number: int) -> int:
        if number < 0:
            raise Conflict(f"{member} asks for too little")
        return 2 * number

    async def later(member: str, number: int) -> int:
        await trio.lowlevel.checkpoint()
        if number < 0:
            raise NotFound("nothing there")
        return number

    center.answer(DOUBLE, double)
    center.serve(LATER, later)
    async with joined(("one", one), center=center):
        assert await one.command("center", DOUBLE, 21) == 42
        assert await one.command("center", LATER, 7) == 7
        with pytest.raises(Conflict, match="one asks for too little"):
            await one.command("center", DOUBLE, -1)
        with pytest.raises(NotFound, match="nothing there"):
            await one.command("center", LATER, -1)


async def test_a_fault_of_a_servant_is_told_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    center, one = Bus(), Bus()

    def fail(member: str, number: int) -> int:
        raise RuntimeError("secret=1")

    center.answer(DOUBLE, fail)
    async with joined(("one", one), center=center):
        for command in (DOUBLE, LATER):  # the second is known to nobody
            with pytest.raises(GatewayError, match=r"^Internal error$"):
                await one.command("center", command, 1)
    assert "command failed" in caplog.text


async def test_what_was_posted_before_a_command_has_had_its_effect_when_it_is_answered() -> None:
    center, one = Bus(), Bus()
    heard: list[str] = []
    center.subscribe(NEWS, lambda member, text: heard.append(text))
    center.answer(DOUBLE, lambda member, number: len(heard))
    async with joined(("one", one), center=center):
        for count in range(1, 50):
            one.publish(NEWS, "x")
            assert await one.command("center", DOUBLE, 0) == count


async def test_a_command_that_is_given_up_is_cancelled_where_it_is_served() -> None:
    center, one = Bus(), Bus()
    events: list[str] = []

    async def serve(member: str, number: int) -> int:
        events.append("begun")
        try:
            await trio.sleep_forever()
        finally:
            events.append("cancelled")

    center.serve(LATER, serve)
    async with joined(("one", one), center=center), trio.open_nursery() as asking:
        asking.start_soon(one.command, "center", LATER, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert events == ["begun"]
        asking.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert events == ["begun", "cancelled"]


async def test_commands_to_a_member_that_goes_or_is_not_there_fail() -> None:
    center, one = Bus(), Bus()

    async def never(member: str, number: int) -> int:
        await trio.sleep_forever()
        raise AssertionError

    one.serve(LATER, never)
    with pytest.raises(MemberGone):
        await center.command("one", LATER, 1)
    async with trio.open_nursery() as nursery:
        here, there = trio.testing.memory_stream_pair()
        await nursery.start(center.attach, "one", here)

        async def ask() -> None:
            with pytest.raises(MemberGone):
                await center.command("one", LATER, 1)

        nursery.start_soon(center.wait_gone, "one")
        async with trio.open_nursery() as life:
            await life.start(one.attach, "center", there)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            life.cancel_scope.cancel()
    assert not center.members
    await center.wait_gone("one")
    center.publish(NEWS, "to nobody")


async def test_a_member_that_died_is_gone_and_ends_nobody_where_that_shows_in_writing_first() -> None:
    center = Bus()
    center.subscribe(NEWS, lambda member, text: None)  # which members are told of
    kept_open, never = trio.testing.memory_stream_one_way_pair()
    sender, taker = trio.testing.memory_stream_one_way_pair()
    await taker.aclose()
    with trio.fail_after(60):
        await center.attach("one", trio.StapledStream(sender, never))
    assert not center.members
    await kept_open.aclose()


async def test_a_member_that_takes_nothing_is_cut_off_and_costs_nobody_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "QUEUED_BYTES", 10_000)
    center, good = Bus(), Bus()
    heard: list[str] = []
    good.subscribe(NEWS, lambda member, text: heard.append(text))
    async with joined(("good", good), center=center) as nursery:
        here, there = trio.testing.lockstep_stream_pair()
        await nursery.start(center.attach, "slow", here)
        await there.send_all(encode(Interest("news")))
        for number in range(20):
            center.publish(NEWS, f"{number}" + 1000 * "x")
            await trio.testing.wait_all_tasks_blocked()
        assert len(heard) == 20
        assert set(center.members) == {"good"}


async def test_a_member_that_sends_nonsense_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    center = Bus()
    for nonsense in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\2\x91\x63"):
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            await nursery.start(center.attach, "odd", here)
            await there.send_all(nonsense)
        assert not center.members
    assert "cut off" in caplog.text


async def test_a_listener_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    center, one = Bus(), Bus()
    heard: list[str] = []

    def listen(member: str, text: str) -> None:
        if text == "bad":
            raise ValueError
        heard.append(text)

    one.subscribe(NEWS, listen)
    async with joined(("one", one), center=center):
        for text in ("a", "bad", "b"):
            center.publish(NEWS, text)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == ["a", "b"]
    assert "listener failed" in caplog.text


def test_frames_may_come_in_any_pieces() -> None:
    frames = [Interest("a" * size) for size in (0, 1, 300, 70_000)]
    data = b"".join(map(encode, frames))
    for size in (1, 3, 1000, len(data)):
        reader = FrameReader()
        found = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
        assert found == frames
    with pytest.raises(BrokenFrame):
        list(FrameReader().feed((links.FRAME_BYTES + 1).to_bytes(4, "big")))
