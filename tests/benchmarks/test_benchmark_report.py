"""What benchmarks make of their figures."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import pytest

from benchmarks import report
from benchmarks.clients import ClientFailed, Figures
from benchmarks.report import Run
from benchmarks.rounds import Contender, Table, alternate
from benchmarks.stand import Options

GIB = 1 << 30
OPTIONS = Options(rounds=3, retries=0, patience=0)


def flow(seconds: float, cpu: float) -> Figures:
    return {
        "bytes": GIB,
        "seconds": seconds,
        "client_cpu": 0.1,
        "server_cpu": cpu,
        "fairness": 0.9,
        "peak_memory": 32 << 20,
        "others": 0.0,
    }


def table() -> Table:
    rounds: dict[str, list[Figures | None]] = {
        "one": [flow(1.0, 0.1), flow(2.0, 0.2), flow(4.0, 0.1)],
        "other": [flow(2.0, 0.2), flow(2.0, 0.2), flow(2.0, 0.4)],
    }
    return Table("pulls", "Pulls", "one", rounds)


def run() -> Run:
    tables = [table()]
    return Run({"kernel": "6.1"}, {"one": "one/1.0"}, {"third": "not | there"}, {}, report.summaries(tables), tables)


def test_a_ratio_is_the_median_of_each_rounds_own() -> None:
    made = report.summary(table(), "other")
    assert made["ratio"] == pytest.approx(1.0)
    assert made["ratio_range"] == [0.5, 2.0]
    assert made["cpu_ratio"] == pytest.approx(2.0)
    assert made["server_cpu"] == pytest.approx(0.2)
    assert made["peak_mib"] == 32


def test_latencies_of_all_rounds_count_together() -> None:
    rounds: list[Figures | None] = [
        {**flow(1, 1), "latencies": [0.001] * 50},
        {**flow(1, 1), "latencies": [0.001] * 49 + [0.5]},
    ]
    made = report.summary(Table("latency", "Latency", "one", {"one": rounds}), "one")
    assert (made["count"], made["p50"], made["max"]) == (100, 0.001, 0.5)


def test_what_was_measured_survives_being_written_and_read() -> None:
    again = msgspec.json.decode(msgspec.json.encode(run()), type=Run)
    assert report.markdown([again]) == report.markdown([run()])


def test_requests_are_shown_with_the_cpu_of_both_sides() -> None:
    figures: Figures = {
        "requests": 1000,
        "seconds": 0.5,
        "client_cpu": 0.012,
        "server_cpu": 0.2,
        "p99": 0.01,
        "peak_memory": 32 << 20,
        "others": 0.0,
    }
    text = text_of(Table("list", "Lists", "one", {"one": [figures], "two": [{**figures, "server_cpu": 0.22}]}))
    uncounted = text_of(Table("churn", "Churn", "one", {"one": [{**figures, "client_cpu": 0.0}]}))
    assert "| server CPU us each | ratio | client CPU us each |" in text
    assert "| one | 2000 | 1.00 | 1.00 to 1.00 | 200 | 1.00 | 12 |" in text
    assert "| two | 2000 | 1.00 | 1.00 to 1.00 | 220 | 1.10 | 12 |" in text
    assert "client CPU" not in uncounted


def test_results_go_between_the_marks_of_a_document_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update(document, report.markdown([run()]))
    report.update(document, report.markdown([run()]))
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| other | 0.54 | 1.00 | 0.50 to 2.00 |") == 1
    assert "left out: not \\| there" in text


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="are missing"):
        report.update(document, "")
    assert document.read_text() == "no marks"


# --- rounds --------------------------------------------------------------------------------------


class Idle:
    """A server that does nothing, as far as rounds know one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = self

    def reset_peak(self) -> None: ...

    def cpu(self) -> float:
        return 0.0

    def peak_memory(self) -> int:
        return 0


def contender(
    name: str, order: list[str], *, fails: Collection[int] = (), seconds: Sequence[float] = (1.0, 1.0, 1.0)
) -> Contender:
    """`fails`: the rounds, from 1, in which it does; `seconds`: how long it takes in each."""
    rounds = itertools.count(1)

    def measure() -> Figures:
        order.append(name)
        number = next(rounds)
        if number in fails:
            raise ClientFailed("refused")
        return {"bytes": GIB, "seconds": seconds[number - 1], "client_cpu": 0.0}

    return Contender(Idle(name), measure, lambda: order.append(f"tidy {name}"))  # type: ignore[arg-type]


def text_of(made: Table) -> str:
    again = Run({}, {}, {}, {}, report.summaries([made]), [made])
    return report.markdown([msgspec.json.decode(msgspec.json.encode(again), type=Run)])


def test_rounds_alternate_and_tidy_after_each_measurement() -> None:
    order: list[str] = []
    alternate("key", "Title", [contender("a", order), contender("b", order)], OPTIONS)
    assert order[::2] == ["a", "b", "b", "a", "a", "b"]
    assert order[1::2] == [f"tidy {name}" for name in order[::2]]


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    order: list[str] = []
    made = alternate("key", "Title", [contender("a", order), contender("b", order, fails={1, 2, 3})], OPTIONS)
    assert made.failed == {"b": "round 1: refused; round 2: refused"}
    assert len(made.figures("a")) == 3
    assert "b" not in made.rounds
    assert order.count("b") == order.count("tidy b") == 2
    assert "b: no figures: round 1: refused; round 2: refused." in text_of(made)


def test_one_that_fails_once_has_figures_of_the_other_rounds() -> None:
    made = alternate("key", "Title", [contender("a", []), contender("b", [], fails={2})], OPTIONS)
    assert [figures is None for figures in made.rounds["b"]] == [False, True, False]
    assert report.summary(made, "b")["ratio"] == pytest.approx(1.0)
    assert "b: figures of 2 rounds only: round 2: refused." in text_of(made)
    assert "3 rounds, compared with a." in text_of(made)


def test_rounds_without_the_reference_count_for_no_ratio() -> None:
    made = alternate(
        "key", "Title", [contender("a", [], fails={1}), contender("b", [], seconds=[9.0, 2.0, 2.0])], OPTIONS
    )
    assert report.summary(made, "b")["ratio_range"] == [0.5, 0.5]
    assert "a: figures of 2 rounds only: round 1: refused." in text_of(made)


def test_without_any_reference_the_others_have_figures_and_no_ratio() -> None:
    made = alternate("key", "Title", [contender("a", [], fails={1, 2, 3}), contender("b", [])], OPTIONS)
    assert report.summary(made, "b")["ratio"] is None
    assert "| b | 1.07 |" in text_of(made)
    assert "a: no figures" in text_of(made)


def test_a_table_of_nobody_tells_why() -> None:
    made = alternate("key", "Title", [contender("a", [], fails={1, 2, 3})], OPTIONS)
    assert made.rounds == {}
    assert "a: no figures" in text_of(made)
