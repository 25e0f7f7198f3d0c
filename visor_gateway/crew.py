"""What the supervisor and its workers say to each other, beside what they say about transfers."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .metrics import Families
from .transfer.bus import Command, Topic

BEAT_SECONDS: Final = 1.0


class Condition(msgspec.Struct, frozen=True):
    """How the gateway stands. Once it drains, workers take no new clients, finish what runs, and end.

    Attributes:
        retired: Another generation is the gateway: what runs may take as long as it takes.
        seconds: For those that are to end after all: how long they may take.
    """

    listening: bool = False
    draining: bool = False
    retired: bool = False
    seconds: float = 0.0


class Welcome(msgspec.Struct, frozen=True):
    """What a worker is to be.

    Attributes:
        version: The supervisor's.
        settings: What the supervisor read at its start (`config.handed_over`), with secrets.
        data_dir: The data directory, which the supervisor holds.
    """

    version: str
    settings: dict[str, Any]
    data_dir: str


class Standing(msgspec.Struct, frozen=True):
    """What was published before a worker listened.

    Attributes:
        changed: The settings that hold now, if they were read again since the start.
        condemned: Attempt ids of bytes that must not leave.
    """

    condition: Condition
    changed: dict[str, Any] | None
    condemned: list[str]


#: A worker's first words. The answer holds secrets: the bus is a pair of sockets that nobody else has.
JOIN: Final = Command("join", type(None), Welcome)
#: Asked when it listens to what follows.
STANDING: Final = Command("standing", type(None), Standing)
#: The worker serves.
READY: Final = Topic("ready", type(None))
#: It can't; why, in one line.
FAILED: Final = Topic("failed", str)
#: Its event loop runs; and what it has counted so far.
BEAT: Final = Topic("beat", list[Any])
#: It has done its work and ends. Answered when all that it said before has been heard.
LEAVING: Final = Command("leaving", Families, type(None))

CONDITION: Final = Topic("condition", Condition)
#: Asked before settings change, which they do for all or for none; refused where this worker can't serve with them.
PREPARE: Final = Command("prepare", dict[str, Any], type(None))
#: Answered when all that was published before has been heard.
HEARD: Final = Command("heard", type(None), type(None))
#: Read again, and prepared by all.
SETTINGS: Final = Topic("settings", dict[str, Any])
#: Do not finish what runs.
CUT: Final = Topic("cut", type(None))
