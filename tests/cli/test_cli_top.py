"""`visor top`: what the screen shows, what keys do, and the real program on a real terminal."""

from __future__ import annotations

import random
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from gateway_process import Gateway, launch, running
from rich.console import Console
from terminal import on_a_terminal
from trio.testing import MockClock
from wire import Wire, eventually, store_image

from visor_gateway.cli.follow import PAUSE_SECONDS
from visor_gateway.cli.top.board import SILENCE_SECONDS, SORTS, Board, Wish
from visor_gateway.cli.top.keys import parse
from visor_gateway.cli.top.run import _Top
from visor_gateway.cli.top.screen import render
from visor_gateway.client import Client, ConnectionBroken, Forbidden, NotFound
from visor_gateway.client.view import TransferView


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def transfer(id: str, **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": id,
        "kind": "pull",
        "image": "image-1",
        "store": "file",
        "client": "192.0.2.1",
        "user": "anne",
        "state": "running",
        "bytes": 500,
        "size": 1000,
        "rate": 100,
        "rate_avg": 50,
        "eta_s": 5.0,
        "started_at": "2026-11-22T12:00:00Z",
        "wait": {"client": 30, "store": 10, "limit": 0, "disk": 0},
        "waiters": 0,
        "limit_bytes_per_s": None,
    }
    return values | fields


def board(*transfers: dict[str, Any], clock: Clock | None = None) -> Board:
    made = Board(now=clock or Clock())
    view = TransferView()
    message = {"type": "snapshot", "transfers": list(transfers), "totals": {}}
    view.apply(message)
    made.hear(message, view)
    return made


def keys(made: Board) -> list[str]:
    return [row.key for row in made.rows()]


def type_text(made: Board, text: str) -> Wish | None:
    for character in text:
        assert made.press(character) is None
    return made.press("enter")


# --- the board -----------------------------------------------------------------------------------


def test_the_fastest_come_first_and_r_turns_that_round() -> None:
    made = board(transfer("a", rate=1), transfer("b", rate=3), transfer("c", rate=2))
    assert keys(made) == ["b", "c", "a"]
    made.press("r")
    assert keys(made) == ["a", "c", "b"]


def test_every_order_is_reached_by_s() -> None:
    made = board(
        transfer("a", eta_s=None, image="z", client="1", state="running", started_at="3"),
        transfer("b", eta_s=2.0, image="y", client="3", state="paused", started_at="2"),
        transfer("c", eta_s=1.0, image="x", client="2", state="queued", started_at="1"),
    )
    seen = {}
    for _ in SORTS:
        seen[made.sort] = "".join(keys(made))
        made.press("s")
    assert seen["left"] == "cba"
    assert seen["image"] == "cba"
    assert seen["client"] == "acb"
    assert seen["state"] == "bca"
    assert seen["started"] == "cba"
    assert made.sort == SORTS[0]


def test_the_filter_looks_everywhere_and_can_be_taken_back() -> None:
    made = board(transfer("a", image="debian"), transfer("b", client="192.0.2.9"))
    made.press("/")
    type_text(made, "DEB")
    assert keys(made) == ["a"]
    made.press("/")
    for _ in range(3):
        made.press("backspace")
    type_text(made, "0.2.9")
    assert keys(made) == ["b"]
    made.press("/")
    made.press("x")
    made.press("escape")
    assert keys(made) == ["b"]


def test_images_are_known_by_their_names_where_those_can_be_seen() -> None:
    made = board(
        transfer("a", image="11112222-3"), transfer("b", image="33334444-5"), transfer("c", image="55556666-7")
    )
    assert made.unnamed() == ["11112222-3", "33334444-5", "55556666-7"]
    made.name("11112222-3", "zesty")
    made.name("33334444-5", "able")
    made.name("55556666-7", None)
    assert made.unnamed() == []
    text = render(made, 200, 20).plain
    assert all(shown in text for shown in ("zesty 11112222 ", "able 33334444 ", " 55556666-7 "))
    made.sort, made.reverse = "image", False
    assert keys(made) == ["c", "b", "a"]
    made.press("/")
    type_text(made, "ZEST")
    assert keys(made) == ["a"]


def test_a_name_is_forgotten_when_its_image_moves_no_more() -> None:
    made = board(transfer("a"))
    made.name("image-1", "zesty")
    view = TransferView()
    made.hear({"type": "snapshot", "transfers": [], "totals": {}}, view)
    view.apply({"type": "snapshot", "transfers": [transfer("b")], "totals": {}})
    assert made.unnamed() == ["image-1"]


def test_a_group_has_the_name_of_its_one_image() -> None:
    made = board(transfer("a"), transfer("b"), transfer("c", image="image-2", store="s3"), transfer("d", store="s3"))
    made.name("image-1", "zesty")
    made.name("image-2", "able")
    made.group = "store"
    assert {row.key: row.label for row in made.rows()} == {"file": "zesty image-1", "s3": "2 different"}


def test_groups_sum_what_they_hold() -> None:
    made = board(
        transfer("a", rate=1, bytes=10, size=100, eta_s=3.0, waiters=2),
        transfer("b", rate=2, bytes=20, size=100, eta_s=9.0, client="192.0.2.2"),
        transfer("c", image="other", size=None),
    )
    made.press("g")
    rows = {row.key: row for row in made.rows()}
    assert set(rows) == {"image-1", "other"}
    one = rows["image-1"]
    assert (one.ids, one.rate, one.bytes, one.size, one.left, one.waiters) == (("a", "b"), 3, 30, 200, 9.0, 2)
    assert one.client == "2 different"
    assert one.wait["client"] == 60
    assert rows["other"].size is None


def test_the_selection_stays_with_its_transfer() -> None:
    made = board(transfer("a", rate=3), transfer("b", rate=2), transfer("c", rate=1))
    made.press("down")
    assert made.selected is not None
    assert made.selected.key == "b"
    made.press("r")
    assert made.selected.key == "b"
    for _ in range(5):
        made.press("j")
    assert made.selected.key == "a"
    for _ in range(5):
        made.press("up")
    assert made.selected.key == "c"


def test_keys_ask_for_what_they_say() -> None:
    made = board(transfer("a"))
    assert made.press("p") == Wish(("a",), {"paused": True})
    assert board(transfer("a", state="paused")).press("p") == Wish(("a",), {"paused": False})
    made.press("l")
    assert type_text(made, "10MiB") == Wish(("a",), {"limit_bytes_per_s": 10 << 20})
    made.press("l")
    assert made.press("enter") == Wish(("a",), {"limit_bytes_per_s": 0})
    made.press("l")
    assert type_text(made, "fast") is None
    assert "'fast'" in made.notice
    made.press("c")
    assert made.press("n") is None
    made.press("c")
    assert made.press("y") == Wish(("a",), None)
    assert not made.ended
    made.press("q")
    assert made.ended


@pytest.mark.parametrize("key", ["p", "l", "c", "up", "down"])
def test_with_nothing_to_act_on_keys_do_nothing(key: str) -> None:
    made = board()
    assert made.press(key) is None
    assert made.prompt is None


def test_the_average_counts_from_the_start_that_the_gateway_saw() -> None:
    clock = Clock()
    made = board(transfer("a", bytes=1000, rate_avg=100), clock=clock)  # ran 10 s
    clock.now += 10
    (row,) = made.rows()
    assert row.average == pytest.approx(50)


def test_a_gateway_that_is_not_heard_of_is_said_to_be_lost() -> None:
    clock = Clock()
    assert not Board(now=clock).is_live
    made = board(clock=clock)
    assert made.is_live
    clock.now += SILENCE_SECONDS
    assert not made.is_live


# --- the screen ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 24), (20, 5), (1, 1)])
def test_the_screen_is_filled_and_never_overrun(width: int, height: int) -> None:
    made = board(*(transfer(str(number), image="ü" * 50) for number in range(100)))
    lines = render(made, width, height).plain.split("\n")
    assert len(lines) == max(height, 5)
    assert {len(line) for line in lines} == {width}


def test_the_screen_shows_totals_stores_bars_and_waits() -> None:
    made = board(
        transfer("abcdefghij", rate=1024), transfer("b", store="s3", size=None, wait={}, eta_s=None, waiters=7)
    )
    text = render(made, 160, 20).plain
    assert "all 2, 1.1 KiB/s" in text
    assert "file 1, 1.0 KiB/s" in text
    assert "s3 1, 100 B/s" in text
    assert "abcdefgh " in text
    assert "#####.....  50%" in text
    assert "client 75 %" in text
    assert re.search(r"\b7\b", text)


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (80, ("ID", "IMAGE", "STATE", "PROGRESS", "RATE", "WAITS FOR"), ("AVERAGE", "WAITERS", "CLIENT")),
        (200, ("ID", "KIND", "IMAGE", "CLIENT", "STATE", "RATE", "AVERAGE", "LEFT", "WAITS FOR", "WAITERS"), ()),
    ],
)
def test_a_narrow_screen_leaves_out_what_matters_least(
    width: int, shown: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    lines = render(board(transfer("a"), transfer("b", state="paused")), width, 24).plain.split("\n")
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 24
    heading = lines[2]
    assert all(name in heading for name in shown)
    assert not [name for name in left_out if name in heading]
    assert "client 75 %" in lines[3]


def test_what_others_wrote_can_not_drive_the_terminal() -> None:
    made = board(transfer("a", image="\x1b[2J\x07", client="\x9b31m"), transfer("b"))
    made.name("image-1", "\x1b]0;x\x07")
    made.filter = "\x1b"
    shown = render(made, 120, 20).plain
    made.filter = ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown + render(made, 120, 20).plain)


def test_the_selected_row_is_always_on_the_screen() -> None:
    made = board(*(transfer(f"{number:03}", rate=1000 - number) for number in range(100)))
    for _ in range(60):
        made.press("down")
    assert "060" in render(made, 120, 20).plain


@pytest.mark.parametrize(
    ("data", "pressed"),
    [
        (b"q", ["q"]),
        (b"\x1b[A", ["up"]),
        (b"\x1bOB", ["down"]),
        (b"\x1b", ["escape"]),
        (b"10MiB\r", ["1", "0", "M", "i", "B", "enter"]),
        (b"\x7f", ["backspace"]),
        (b"\x1b[15~", []),
        ("ü".encode(), ["ü"]),
        (b"\xff\x00", []),
        (b"", []),
    ],
)
def test_keys_are_read_as_terminals_write_them(data: bytes, pressed: list[str]) -> None:
    assert parse(data) == pressed


class Records:
    """A client that has a record, is refused others, and loses its connection once."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def head(self, image_id: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(image_id)
        match image_id:
            case "gone":
                raise NotFound("No image", status=404)
            case "private":
                raise Forbidden("No", status=403)
            case "late" if self.asked.count("late") == 1:
                raise ConnectionBroken("cut")
        return {"name": f"name of {image_id}"}


async def test_names_are_asked_for_once_and_again_only_where_the_gateway_was_away(autojump_clock: MockClock) -> None:
    made = board(*(transfer(id, image=id) for id in ("gone", "here", "late", "private")))
    client = Records()
    top = _Top(cast(Client, client), made, Console())
    with trio.move_on_after(3.5 * PAUSE_SECONDS):
        await top._name()
    assert client.asked == ["gone", "here", "late", "private", "late"]
    names = {row.key: row.name for row in made.rows()}
    assert names == {"gone": None, "here": "name of here", "late": "name of late", "private": None}


# --- on a terminal -------------------------------------------------------------------------------


@contextmanager
def pulling(gateway: Gateway) -> Generator[tuple[str, Wire]]:
    image = store_image(gateway.admin, random.Random(8).randbytes(24 << 20), name="zesty")
    with gateway.admin.start("GET", image.path, receive_buffer=65536) as wire:
        head = wire.read_head()
        yield head.header("x-transfer-id") or "", wire


def state(gateway: Gateway, transfer_id: str) -> str:
    return str(gateway.admin.get(f"/transfers/{transfer_id}").json()["transfer"]["state"])


@pytest.mark.real
def test_a_pull_is_seen_and_steered_by_keys_and_a_restart_survived(tmp_path: Path) -> None:
    gateway = launch(tmp_path)
    with on_a_terminal(gateway, "top") as terminal:
        with pulling(gateway) as (transfer_id, _):
            terminal.until(lambda seen: transfer_id[:8] in seen and "running" in seen and "zesty " in seen)
            terminal.press("p")
            eventually(lambda: state(gateway, transfer_id) == "paused")
            terminal.until(lambda seen: "paused" in seen)
            terminal.press("l")
            terminal.press("5MiB\r")
            limit = f"/transfers/{transfer_id}"
            eventually(lambda: gateway.admin.get(limit).json()["transfer"]["limit_bytes_per_s"] == 5 << 20)
            terminal.press("c")
            terminal.press("y")
            eventually(lambda: state(gateway, transfer_id) == "cancelled")
        terminal.until(lambda seen: "Nothing moves" in seen)
        gateway.kill()
        again = launch(tmp_path, port=int(gateway.url.rpartition(":")[2]))
        try:
            with pulling(again) as (transfer_id, _):
                terminal.until(lambda seen: transfer_id[:8] in seen)
            terminal.press("q")
            assert terminal.process.wait(60) == 0
            assert "\x1b[?1049l" in terminal.read()  # the screen is as before
        finally:
            again.stop()


@pytest.mark.real
def test_without_a_terminal_and_for_logs_it_prints_tables(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, pulling(gateway) as (transfer_id, wire):
        with on_a_terminal(gateway, "top", "--plain", "--every", "0.2") as terminal:
            terminal.until(lambda seen: seen.count(transfer_id) >= 3)
        with on_a_terminal(gateway, "top", "--once", "--json") as terminal:
            terminal.until(lambda seen: f'"id":"{transfer_id}"' in seen)
            assert terminal.process.wait(60) == 0
        wire.cut()
