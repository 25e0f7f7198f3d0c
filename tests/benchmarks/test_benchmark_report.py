"""What benchmarks make of their figures."""

from __future__ import annotations

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
    rounds = {
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
    rounds = [{**flow(1, 1), "latencies": [0.001] * 50}, {**flow(1, 1), "latencies": [0.001] * 49 + [0.5]}]
    made = report.summary(Table("latency", "Latency", "one", {"one": rounds}), "one")
    assert (made["count"], made["p50"], made["max"]) == (100, 0.001, 0.5)


def test_what_was_measured_survives_being_written_and_read() -> None:
    again = msgspec.json.decode(msgspec.json.encode(run()), type=Run)
    assert report.markdown([again]) == report.markdown([run()])


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


def contender(name: str, order: list[str], *, fails: bool = False) -> Contender:
    def measure() -> Figures:
        order.append(name)
        if fails:
            raise ClientFailed("refused")
        return {"bytes": GIB, "seconds": 1.0, "client_cpu": 0.0}

    return Contender(Idle(name), measure, lambda: order.append(f"tidy {name}"))  # type: ignore[arg-type]


def test_rounds_alternate_and_tidy_after_each_measurement() -> None:
    order: list[str] = []
    alternate("key", "Title", [contender("a", order), contender("b", order)], OPTIONS)
    assert order[::2] == ["a", "b", "b", "a", "a", "b"]
    assert order[1::2] == [f"tidy {name}" for name in order[::2]]


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    order: list[str] = []
    made = alternate("key", "Title", [contender("a", order), contender("b", order, fails=True)], OPTIONS)
    assert made.failed == {"b": "refused"}
    assert len(made.rounds["a"]) == 3
    assert "b" not in made.rounds
    assert order.count("b") == order.count("tidy b") == 1


def test_a_reference_that_fails_ends_its_table() -> None:
    with pytest.raises(ClientFailed):
        alternate("key", "Title", [contender("a", [], fails=True)], OPTIONS)
