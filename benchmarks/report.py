"""Results: medians, ratios, and tables for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from .clients import Figures
from .machine import GIB, MIB
from .rounds import Table

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


#: One contender's medians; `ratio` and `cpu_ratio` are medians of each round's ratio to the reference.
Summary: TypeAlias = dict[str, Any]


class Run(msgspec.Struct):
    """Everything that one run found out.

    Attributes:
        versions: What servers call themselves, by name.
        absent: Why servers are left out, by name.
        failed: Why workloads have no or not all their tables, by name.
        summaries: What each table's rounds come to, by the table's key and the contender's name.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    absent: dict[str, str]
    failed: dict[str, str]
    summaries: dict[str, dict[str, Summary]]
    tables: list[Table]


def summary(table: Table, name: str) -> Summary:
    """What the rounds of one contender come to."""
    rounds = table.figures(name)
    reference = table.rounds.get(table.reference, [None] * len(table.rounds[name]))
    pairs = [(one, other) for one, other in zip(table.rounds[name], reference, strict=True) if one and other]
    made: Summary = {
        "peak_mib": max(figures["peak_memory"] for figures in rounds) / MIB,
        "others": _median(rounds, lambda figures: figures["others"]),
    }
    if "latencies" in rounds[0]:
        made.update(_waits([value for figures in rounds for value in figures["latencies"]]))
    if "bytes" in rounds[0]:
        made.update(_flow(rounds, pairs, "bytes", GIB))
    elif "requests" in rounds[0]:
        made.update(_flow(rounds, pairs, "requests", 1))
        if rounds[0].get("p99") is not None:
            made["p99"] = _median(rounds, lambda figures: figures["p99"])
    for key in ("cores", "messages", "gaps", "cuts", "fairness", "upstream", "stalled_memory", "stalled_kernel_memory"):
        if key in rounds[0]:
            made[key] = statistics.median(figures[key] for figures in rounds)
    made.update({key: value for key, value in rounds[-1].items() if key.startswith("slow_")})
    return made


def _flow(rounds: Sequence[Figures], pairs: Sequence[tuple[Figures, Figures]], what: str, unit: int) -> dict[str, Any]:
    """`pairs`: of each round that both have, the figures of the contender and of the reference."""

    def rate(figures: Figures) -> float:
        return float(figures[what] / figures["seconds"])

    def server(figures: Figures) -> float:
        return float(figures["server_cpu"] / (figures[what] / unit))

    pairs = [pair for pair in pairs if what in pair[1]]
    ratios = [rate(one) / rate(other) for one, other in pairs]
    costs = [server(one) / server(other) for one, other in pairs if server(other)]
    return {
        "rate": _median(rounds, rate),
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_range": [min(ratios), max(ratios)] if ratios else None,
        "server_cpu": _median(rounds, server),
        "cpu_ratio": statistics.median(costs) if costs else None,
        "client_cpu": _median(rounds, lambda figures: figures["client_cpu"] / (figures[what] / unit)),
    }


def _waits(latencies: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(latencies)
    return {
        "count": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }


def _median(rounds: Iterable[Figures], value: Callable[[Figures], float]) -> float:
    return statistics.median(value(figures) for figures in rounds)


def summaries(tables: Iterable[Table]) -> dict[str, dict[str, Summary]]:
    """Every table's contenders."""
    return {table.key: {name: summary(table, name) for name in table.rounds} for table in tables}


# --- Markdown ------------------------------------------------------------------------------------

Cell = Callable[[Summary], str]


def _number(key: str, digits: int, factor: float = 1.0) -> Cell:
    def cell(made: Summary) -> str:
        value = made.get(key)
        return "" if value is None else f"{value * factor:.{digits}f}"

    return cell


def _range(made: Summary) -> str:
    span = made.get("ratio_range")
    return "" if span is None else f"{span[0]:.2f} to {span[1]:.2f}"


def _fared(made: Summary) -> str:
    if "slow_seconds" not in made:
        return ""
    return f"{'cut' if made['slow_cut'] else 'alive'} after {made['slow_seconds']:.0f} s"


def _client_each(made: Summary) -> str:
    """Nothing where clients are not counted, as those that are not of ours."""
    return f"{made['client_cpu'] * 1e6:.0f}" if made["client_cpu"] else ""


#: Columns in their order; one without a value in a whole table is left out.
_FLOW: Final[Sequence[tuple[str, Cell]]] = (
    ("GB/s", _number("rate", 2, 1e-9)),
    ("ratio", _number("ratio", 2)),
    ("lowest to highest", _range),
    ("server CPU s/GiB", _number("server_cpu", 3)),
    ("ratio", _number("cpu_ratio", 2)),
    ("client CPU s/GiB", _number("client_cpu", 3)),
    ("server cores", _number("cores", 2)),
    ("messages", _number("messages", 0)),
    ("fairness", _number("fairness", 2)),
    ("read from the origin, images", _number("upstream", 2)),
    ("client at 1 KB/s", _fared),
    ("memory of 100 stalled, MiB", _number("stalled_memory", 1, 1 / MIB)),
    ("and in the kernel", _number("stalled_kernel_memory", 1, 1 / MIB)),
    ("peak MiB", _number("peak_mib", 0)),
    ("others", _number("others", 2)),
)
_REQUESTS: Final[Sequence[tuple[str, Cell]]] = (
    ("requests/s", _number("rate", 0)),
    ("ratio", _number("ratio", 2)),
    ("lowest to highest", _range),
    ("server CPU us each", _number("server_cpu", 0, 1e6)),
    ("ratio", _number("cpu_ratio", 2)),
    ("client CPU us each", _client_each),
    ("p99 ms", _number("p99", 1, 1e3)),
    ("server cores", _number("cores", 2)),
    ("messages", _number("messages", 0)),
    ("gaps", _number("gaps", 0)),
    ("resumed", _number("cuts", 0)),
    ("peak MiB", _number("peak_mib", 0)),
    ("others", _number("others", 2)),
)
_WAITS: Final[Sequence[tuple[str, Cell]]] = (
    ("answers", _number("count", 0)),
    ("p50 ms", _number("p50", 2, 1e3)),
    ("p99 ms", _number("p99", 2, 1e3)),
    ("longest ms", _number("max", 1, 1e3)),
    ("others", _number("others", 2)),
)


def markdown(runs: Sequence[Run]) -> str:
    """All of it, as part of a document. Facts that differ between runs stand beside each other."""
    tables = [_table(table) for run in runs for table in run.tables]
    failed = [f"{name}: not measured whole: {_plain(why)}." for run in runs for name, why in run.failed.items()]
    return "\n\n".join([_facts(runs), *tables, *failed]) + "\n"


def _facts(runs: Sequence[Run]) -> str:
    facts: dict[str, list[str]] = {}
    for run in runs:
        left_out = {name: f"left out: {why}" for name, why in run.absent.items()}
        for name, value in {**run.machine, **run.versions, **left_out}.items():
            found = facts.setdefault(name, [])
            if str(value) not in found:
                found.append(str(value))
    rows = [f"| {name} | {_plain('; '.join(values))} |" for name, values in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _table(table: Table) -> str:
    made = {name: summary(table, name) for name in table.rounds}
    columns = _columns(table, made)
    shown = [(title, cell) for title, cell in columns if any(cell(each) for each in made.values())]
    lines = [
        f"| {' | '.join(['', *(title for title, _ in shown)])} |",
        f"|{'---|' * (len(shown) + 1)}",
        *(f"| {name} | {' | '.join(cell(each) for _, cell in shown)} |" for name, each in made.items()),
    ]
    failed = "".join(f"\n\n{_fault(table, name)}: {_plain(why)}." for name, why in table.failed.items())
    rounds = max((len(rounds) for rounds in table.rounds.values()), default=0)
    compared = f"{rounds} rounds, compared with {table.reference}."
    return f"### {table.title}\n\n{compared}\n\n" + "\n".join(lines if made else ()) + failed


def _columns(table: Table, made: Mapping[str, Summary]) -> Sequence[tuple[str, Cell]]:
    if any("count" in each for each in made.values()):
        return _WAITS
    asks = any("requests" in figures for name in made for figures in table.figures(name))
    return _REQUESTS if asks else _FLOW


def _fault(table: Table, name: str) -> str:
    figures = len(table.figures(name))
    return f"{name}: figures of {figures} rounds only" if figures else f"{name}: no figures"


def update(document: Path, text: str) -> None:
    """Put results into a document, between its two marks. Raises `ValueError` where it has none."""
    before, begin, rest = document.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: the marks {BEGIN} and {END} are missing")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")
