"""Rounds: every server in turn, forwards and backwards, and again where others were at work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from .clients import ClientFailed, Figures
from .machine import Neighbours, wait_quiet
from .peer import Peer
from .stand import Options


class Contender(msgspec.Struct, frozen=True):
    """One server in one measurement. `measure` returns the client's figures, `tidy` is not measured."""

    peer: Peer
    measure: Callable[[], Figures]
    tidy: Callable[[], None] = lambda: None
    label: str = ""

    @property
    def name(self) -> str:
        """How results name it."""
        return self.label or self.peer.name


class Table(msgspec.Struct):
    """The figures of one measurement.

    Attributes:
        key: Short name, for machines.
        reference: The contender that the others are compared with.
        rounds: Figures of each round, by contender.
        failed: Why a contender has none.
    """

    key: str
    title: str
    reference: str
    rounds: dict[str, list[Figures]]
    failed: dict[str, str] = msgspec.field(default_factory=dict)


def alternate(key: str, title: str, contenders: Sequence[Contender], options: Options) -> Table:
    """Measure every contender once a round; the first is the reference. Odd rounds go backwards.

    Raises:
        ClientFailed: The reference failed. Another one that fails is left out from then on.
    """
    table = Table(key, title, contenders[0].name, {contender.name: [] for contender in contenders})
    for number in range(options.rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            if contender.name not in table.failed:
                _once(table, number, contender, options)
    return table


def _once(table: Table, number: int, contender: Contender, options: Options) -> None:
    try:
        figures = _quietest(contender, options)
    except ClientFailed as why:
        if contender.name == table.reference:
            raise
        table.failed[contender.name] = str(why)
        del table.rounds[contender.name]
        print(f"{table.key} {contender.name}: failed: {why}", file=sys.stderr)
    else:
        table.rounds[contender.name].append(figures)
        _tell(table.key, number, contender.name, figures)


def _quietest(contender: Contender, options: Options) -> Figures:
    """The measurement least disturbed by others; no more are made once one is quiet enough."""
    tries: list[Figures] = []
    for _ in range(options.retries + 1):
        wait_quiet(options.quiet, options.patience)
        try:
            tries.append(_observe(contender))
        finally:
            contender.tidy()
        if tries[-1]["others"] <= options.quiet:
            break
    return min(tries, key=lambda figures: float(figures["others"]))


def _observe(contender: Contender) -> Figures:
    process = contender.peer.process
    process.reset_peak()
    server, own = process.cpu(), time.process_time()
    neighbours = Neighbours()
    figures = contender.measure()
    used = process.cpu() - server
    ours = used + figures["client_cpu"] + figures.get("beside_cpu", 0.0) + time.process_time() - own
    return {
        **figures,
        "server_cpu": used,
        "peak_memory": process.peak_memory(),
        "others": neighbours.share(ours),
    }


def _tell(key: str, number: int, name: str, figures: Figures) -> None:
    if "bytes" in figures:
        rate = f"{figures['bytes'] / figures['seconds'] / 1e9:.2f} GB/s"
    elif "requests" in figures:
        rate = f"{figures['requests'] / figures['seconds']:.0f} requests/s"
    else:
        rate = ""
    print(
        f"{key} {number + 1} {name}: {rate} {figures['server_cpu']:.2f} s CPU, others {figures['others']:.0%}",
        file=sys.stderr,
        flush=True,
    )
