"""What people see: progress, tables, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest

from visor_gateway.cli import output
from visor_gateway.cli.display import Lines as TransferLines
from visor_gateway.cli.display import lines
from visor_gateway.cli.progress import Lines
from visor_gateway.client.view import TransferView

MIB = 1024 * 1024
TRANSFER = {
    "id": "t",
    "kind": "pull",
    "image": "i",
    "state": "running",
    "bytes": 30 * MIB,
    "size": 120 * MIB,
    "rate": MIB,
    "eta_s": 90.2,
    "wait": {"client": 400, "store": 3},
    "user": "foo",
    "client": "10.0.0.1",
    "error": None,
}


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_progress_is_a_line_every_five_seconds_with_rate_and_time_left() -> None:
    clock, written = Clock(), list[str]()
    report = Lines("image.iso", now=clock, write=written.append)
    for second in range(13):
        clock.seconds = 100.0 + second
        report(second * 10 * MIB, 200 * MIB)
    assert written == [
        "image.iso:  25 % 50.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:15 left",
        "image.iso:  50 % 100.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:10 left",
    ]


def test_what_an_earlier_download_left_is_no_speed() -> None:
    clock, written = Clock(), list[str]()
    report = Lines("i", now=clock, write=written.append)
    report(100 * MIB, 200 * MIB)
    clock.seconds += 5
    report(110 * MIB, 200 * MIB)
    assert written == ["i:  55 % 110.0 MiB of 200.0 MiB, 2.0 MiB/s, 0:45 left"]


def test_without_a_size_there_is_neither_percent_nor_time_left() -> None:
    clock, written = Clock(), list[str]()
    report = Lines("i", now=clock, write=written.append)
    report(0, None)
    clock.seconds += 5
    report(5 * MIB, None)
    assert written == ["i: 5.0 MiB, 1.0 MiB/s"]


def test_a_transfer_in_the_queue_shows_its_place() -> None:
    queued = TRANSFER | {"state": "queued", "position": 3}
    assert "queued (place 3)" in lines([queued])[1]
    written: list[str] = []
    TransferLines(write=written.append)({"type": "event", "kind": "started", "transfer": queued}, TransferView())
    assert written[0].startswith("started (place 3)  pull")


def test_a_transfer_is_one_line_with_what_it_waits_for() -> None:
    heading, row = lines([TRANSFER])
    assert " ".join(heading.split()) == "KIND STATE PROGRESS RATE LEFT WAITS FOR USER CLIENT TRANSFER IMAGE"
    assert " ".join(row.split()) == "pull running 25 % of 120.0 MiB 1.0 MiB/s 1:30 client foo 10.0.0.1 t i"


def test_a_transfer_of_unknown_size_is_shown() -> None:
    bare = {"id": "t", "kind": "push", "image": "i", "state": "queued"}
    assert lines([bare])[1].split() == ["push", "queued", "0", "B", "0", "B/s", "-", "-", "-", "-", "t", "i"]


def test_events_are_lines_and_progress_comes_every_few_seconds() -> None:
    clock, written, view = Clock(), list[str](), TransferView()
    show = TransferLines(now=clock, write=written.append)

    def say(message: dict[str, object]) -> None:
        view.apply(message)
        show(message, view)

    delta = {"type": "delta", "u": [["t", 60 * MIB, MIB, 60.0, "running", {}]], "removed": []}
    say({"type": "snapshot", "transfers": [TRANSFER], "totals": {}})
    say(delta)
    clock.seconds += 5
    say(delta)
    say({"type": "heartbeat"})
    failed = TRANSFER | {"state": "failed", "error": "The store\x1b[2J failed"}
    say({"type": "event", "kind": "failed", "transfer": failed})
    assert [line.split()[0] for line in written] == ["running", "running", "failed"]
    assert "50 %" in written[1]
    assert "\x1b" not in written[2]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 60, "1024.0 PiB")]
)
def test_bytes_are_counted_in_binary_units(count: int, shown: str) -> None:
    assert output.byte_count(count) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00")])
def test_durations_are_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert output.duration(seconds) == shown


def test_names_can_not_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = {"name": "a\x1b]0;title\x07b\nc", "size": None, "read_only": True}
    output.print_record(hostile)
    output.print_table({"name": "NAME", "size": "SIZE"}, [hostile])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 4
    assert "yes" in shown


def test_a_fill_shows_how_many_wait_for_it() -> None:
    _, row = lines([TRANSFER | {"kind": "fill", "client": None, "user": None, "waiters": 64}])
    assert " ".join(row.split()).endswith(" - 64 waiting t i")
