"""`python -m benchmarks`: the command line, and the order of things."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from . import cached, fanout, isolation, proxied, pulls, report, requests, subscribers, uploads, waiters, waits
from .clients import ClientFailed
from .control import Refused
from .machine import description
from .process import ServerFailed
from .report import Run
from .rounds import Table
from .stand import Options, Stand

WORKLOADS: Final[Mapping[str, Callable[[Stand], Iterator[Table]]]] = {
    "pulls": pulls.workloads,
    "large": pulls.large,
    "slow": pulls.slow,
    "stalled": pulls.stalled,
    "tls": pulls.tls,
    "cached": cached.workloads,
    "fanout": fanout.workloads,
    "waiters": waiters.workloads,
    "proxied": proxied.workloads,
    "uploads": uploads.workloads,
    "requests": requests.workloads,
    "workers": requests.workers,
    "records": requests.records,
    "latency": waits.latency,
    "cancel": waits.cancellation,
    "subscribers": subscribers.workloads,
    "churn": subscribers.churn,
}


class Ended(Exception):
    """Somebody ended the run. The tables that were whole by then are kept."""


def main() -> int:
    """Measure what the command line asks for, in a network of our own where that can be had."""
    words = _words()
    runs = [msgspec.json.decode(file.read_bytes(), type=Run) for file in words.render] or [_run(words)]
    if words.json:
        words.json.write_bytes(msgspec.json.encode(runs[0]) + b"\n")
    text = report.markdown(runs)
    if words.update:
        report.update(words.update, text)
    print(text)
    return 1 if any(run.failed for run in runs) else 0


def _run(words: argparse.Namespace) -> Run:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    network = isolation.enter()
    print(f"network: {network}", file=sys.stderr)
    directory = Path(tempfile.mkdtemp(prefix="visor-benchmarks-", dir=words.directory))
    try:
        return _measure(directory, words, network)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(directory: Path, words: argparse.Namespace, network: str) -> Run:
    options = Options(
        rounds=words.rounds,
        scale=words.scale,
        retries=words.retries,
        quiet=words.quiet,
        patience=words.patience,
        streams=tuple(words.streams),
        watcher=not words.no_watcher,
        peers=words.peers.absolute(),
        crowds=tuple(words.crowds),
    )
    stand = Stand(directory, options)
    tables: list[Table] = []
    failed: dict[str, str] = {}
    try:
        for name in words.workloads or WORKLOADS:
            try:
                tables.extend(WORKLOADS[name](stand))
            except (ClientFailed, Refused, ServerFailed, OSError) as why:
                failed[name] = str(why)
                print(f"{name}: failed: {why}", file=sys.stderr)
    except Ended as why:
        failed["the run"] = str(why)
    finally:
        stand.close()
    machine = {**description(directory), "network": network}
    return Run(machine, stand.versions, stand.absent, failed, report.summaries(tables), tables)


def _words(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The gateway beside other servers.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all without one")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies sizes and durations; 0.05 is a quick try")
    parser.add_argument(
        "--retries", type=int, default=1, help="repeats of a measurement that others disturb (default 1)"
    )
    parser.add_argument("--quiet", type=float, default=0.1, help="the others' part of the cores that does not disturb")
    parser.add_argument("--patience", type=float, default=3.0, help="seconds to wait for that before each measurement")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[], metavar="N", help="of pulls and large, only those with N streams"
    )
    parser.add_argument("--no-watcher", action="store_true", help="pull without a subscriber at 4 Hz")
    parser.add_argument("--directory", type=Path, help="where files are put meanwhile (default: the system's)")
    parser.add_argument(
        "--peers", type=Path, default=Options().peers, help="where glance/ and starlette/ are installed"
    )
    parser.add_argument(
        "--crowds", type=int, nargs="+", default=[], metavar="CLIENTS", help="of fanout and waiters only these"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument(
        "--render", type=Path, nargs="+", default=[], metavar="FILE", help="tables of runs before; measure nothing"
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the tables into a document, between its marks")
    words = parser.parse_args(given)
    unknown = [name for name in words.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}")
    return words


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    raise SystemExit(main())
