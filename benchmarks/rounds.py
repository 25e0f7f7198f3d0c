"""Rounds: every server in turn, forwards and backwards, and again where others were at work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from .clients import ClientFailed, Figures
from .control import Refused
from .machine import Neighbours, wait_quiet
from .peer import Peer
from .process import ServerFailed
from .stand import Options

#: Failed rounds after which a contender is left out. One may be chance: a server that cuts a body now and then is
#: measured in the rounds in which it does not.
FAULTS: Final = 2


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
        reference: The contender that the others are compared with, in the rounds in which both have figures.
        rounds: Figures of each round, by contender; None where it failed in that one. Who has none at all is not here.
        failed: Why contenders have no figures of some rounds, or of all.
    """

    key: str
    title: str
    reference: str
    rounds: dict[str, list[Figures | None]]
    failed: dict[str, str] = msgspec.field(default_factory=dict)

    def figures(self, name: str) -> list[Figures]:
        """What there is of a contender."""
        return [figures for figures in self.rounds.get(name, ()) if figures is not None]


def alternate(key: str, title: str, contenders: Sequence[Contender], options: Options) -> Table:
    """Measure every contender once a round; the first is the reference. Odd rounds go backwards.

    A contender that fails, the reference too, has no figures of that round, and the others go on. After `FAULTS` such
    rounds it is left out.
    """
    table = Table(key, title, contenders[0].name, {contender.name: [] for contender in contenders})
    faults: dict[str, list[str]] = {contender.name: [] for contender in contenders}
    for number in range(options.rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            said = faults[contender.name]
            figures = _once(table.key, number, contender, options, said) if len(said) < FAULTS else None
            table.rounds[contender.name].append(figures)
    table.failed = {name: "; ".join(said) for name, said in faults.items() if said}
    table.rounds = {name: rounds for name, rounds in table.rounds.items() if any(rounds)}
    return table


def _once(key: str, number: int, contender: Contender, options: Options, faults: list[str]) -> Figures | None:
    """One measurement; None where it failed, of which `faults` is told."""
    try:
        figures = _quietest(contender, options)
    except (ClientFailed, Refused, ServerFailed, OSError) as why:
        faults.append(f"round {number + 1}: {why}")
        print(f"{key} {number + 1} {contender.name}: failed: {why}", file=sys.stderr, flush=True)
        return None
    _tell(key, number, contender.name, figures)
    return figures


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
