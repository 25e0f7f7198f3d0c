"""What `visor get` and `visor add` show of the gateway's own view, beside their bars."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_process import Gateway, running
from terminal import on_a_terminal
from trio.testing import MockClock

from visor_gateway.cli.beside import ASK_SECONDS, Beside, note
from visor_gateway.cli.progress import LINE_SECONDS, Lines
from visor_gateway.client import Forbidden, NotFound, VisorError

SIZE = 6 << 20


def transfer(**fields: Any) -> dict[str, Any]:
    wait = {"client": 0, "store": 0, "limit": 0, "disk": 0}
    return {"state": "running", "wait": wait, "attempt": 1, "limit_bytes_per_s": None} | fields


def waits(**ms: int) -> dict[str, int]:
    return {"client": 0, "store": 0, "limit": 0, "disk": 0} | ms


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"state": "queued", "position": 3}, "queued at the gateway, place 3"),
        ({"state": "queued"}, "queued at the gateway"),
        ({"state": "paused"}, "paused at the gateway"),
        ({"state": "finished", "wait": waits(store=250)}, ""),
        ({"wait": waits(store=200, client=50)}, "gateway waits for its store (80 %)"),
        ({"wait": waits(client=240)}, "gateway waits for this side (100 %)"),
        ({"wait": waits(disk=240)}, "gateway waits for its disk (100 %)"),
        ({"wait": waits(store=10)}, ""),
        ({"wait": waits(limit=99)}, "gateway waits for its limit (100 %)"),
        ({"limit_bytes_per_s": 1024}, "gateway limited to 1.0 KiB/s"),
        ({"attempt": 3}, "gateway try 3"),
    ],
)  # fmt: skip
def test_what_matters_is_said_in_a_few_words(fields: dict[str, Any], words: str) -> None:
    assert note(transfer(**fields)) == words


class Gate:
    """A client whose gateway answers from a list, the last of it again and again."""

    def __init__(self, *answers: dict[str, Any] | VisorError) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.transfers = self

    async def get(self, id: str) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append(id)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, VisorError):
            raise answer
        return answer


async def told(gate: Gate, seconds: float) -> list[str]:
    words: list[str] = []
    client: Any = gate
    beside = Beside(client, words.append)
    async with beside.looking():
        await trio.sleep(2 * ASK_SECONDS)  # nothing moves yet, so nothing is asked
        assert not gate.asked
        beside.follow("one")
        await trio.sleep(seconds)
    return words


async def test_a_change_is_told_once_and_what_is_not_known_takes_it_back(autojump_clock: MockClock) -> None:
    paused = transfer(state="paused")
    gate = Gate(NotFound("none"), paused, paused, NotFound("none"), transfer())
    assert await told(gate, 10.0) == ["paused at the gateway", ""]
    assert set(gate.asked) == {"one"}


async def test_who_may_not_see_transfers_is_not_asked_for_again(autojump_clock: MockClock) -> None:
    gate = Gate(Forbidden("no"))
    assert await told(gate, 60.0) == []
    assert len(gate.asked) == 1


async def test_the_failure_of_the_work_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    client: Any = Gate(transfer())
    with pytest.raises(KeyError):
        async with Beside(client, lambda words: None).looking():
            raise KeyError


def test_without_a_terminal_a_note_is_part_of_the_line_and_one_of_its_own_where_nothing_moves() -> None:
    now, written = [0.0], list[str]()
    lines = Lines("disk", now=lambda: now[0], write=written.append)
    lines.note("queued at the gateway, place 2")
    assert not written
    now[0] = LINE_SECONDS
    lines.note("queued at the gateway, place 1")
    now[0] = 2 * LINE_SECONDS
    lines(500, 1000)
    assert [each.endswith("queued at the gateway, place 1") for each in written] == [True, True]
    lines.note("")
    now[0] = 3 * LINE_SECONDS
    lines(600, 1000)
    assert "gateway" not in written[-1]


# --- the real programs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = "[limits]\nbytes_per_s_per_transfer = '1 MiB'\n"
    with running(tmp_path_factory.mktemp("limited"), config=config) as gateway:
        yield gateway


def lift(gateway: Gateway) -> None:
    """Let everything end at once."""
    gateway.admin.send_json("PATCH", "/transfers?kind=pull&kind=push", {"limit_bytes_per_s": 10**9})


def test_add_and_get_show_that_the_gateway_holds_them_back(limited: Gateway, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(3).randbytes(SIZE))
    with on_a_terminal(limited, "add", "name=held", "architecture=x86_64", "-f", str(source)) as terminal:
        terminal.until(lambda seen: "waits for its limit" in seen)
        lift(limited)
        terminal.until(lambda seen: "available" in seen)
        assert terminal.process.wait(60) == 0
    image = limited.admin.named("held")
    assert image is not None
    with on_a_terminal(limited, "get", image["_id"], "-o", str(tmp_path / "copy")) as terminal:
        terminal.until(lambda seen: "waits for its limit" in seen)
        limited.admin.send_json("PATCH", f"/transfers?image={image['_id']}", {"paused": True})
        terminal.until(lambda seen: "paused at the gateway" in seen)
        limited.admin.send_json("PATCH", f"/transfers?image={image['_id']}", {"paused": False})
        lift(limited)
        assert terminal.process.wait(60) == 0
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
