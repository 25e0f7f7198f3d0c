"""Progress of one upload or download: a bar on a terminal, a line every few seconds elsewhere. On standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import click

from ..transfer.meter import Meter
from .output import byte_count, duration, text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS: Final = 5.0
REFRESH_HZ: Final = 5.0


class Report(Protocol):
    """Called with the bytes that are done and the size, None while unknown."""

    def __call__(self, done: int, size: int | None) -> None: ...

    def note(self, text: str) -> None:
        """Show some words beside the progress, in place of those before."""
        ...


@contextmanager
def shown(label: str, *, quiet: bool) -> Generator[Report]:
    """What progress is reported to; it shows until the end."""
    if quiet:
        yield _Nothing()
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _Bar(bar, text(label))
    else:
        yield Lines(text(label))


class _Nothing:
    def __call__(self, done: int, size: int | None) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Lines:
    """Prints a line every few seconds, and none for what is over sooner."""

    def __init__(
        self,
        label: str,
        *,
        now: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._label = label
        self._now = now
        self._write = write
        self._meter = Meter(now=now)
        self._begun: int | None = None
        self._due = now() + LINE_SECONDS
        self._last: tuple[int, int | None] = (0, None)
        self._note = ""

    def note(self, text: str) -> None:
        """A new note is worth a line of its own, as long as they are not many: nothing else may come for a while."""
        self._note = text
        if text:
            self._write_if_due()

    def __call__(self, done: int, size: int | None) -> None:
        if self._begun is None:
            self._begun = done
        # What an earlier download left must not count as speed; a download that starts over falls back below it.
        self._begun = min(self._begun, done)
        self._meter.moved = done - self._begun
        self._last = done, size
        self._write_if_due()

    def _write_if_due(self) -> None:
        if self._now() >= self._due:
            self._due = self._now() + LINE_SECONDS
            self._meter.sample()
            self._write(self._line(*self._last))

    def _line(self, done: int, size: int | None) -> str:
        rate = self._meter.rate
        parts = [f"{byte_count(done)} of {byte_count(size)}" if size is not None else byte_count(done)]
        parts.append(f"{byte_count(rate)}/s")
        if size is not None and rate >= 1:
            parts.append(f"{duration((size - done) / rate)} left")
        if self._note:
            parts.append(self._note)
        percent = f"{100 * done // size:3} % " if size else ""
        return f"{self._label}: {percent}{', '.join(parts)}"


class _Bar:
    def __init__(self, bar: RichProgress, label: str) -> None:
        self._bar = bar
        self._label = label
        self._task: TaskID | None = None
        self._begun = False

    def __call__(self, done: int, size: int | None) -> None:
        task = self._shown()
        if self._begun:
            self._bar.update(task, total=size, completed=done)
        else:
            # It begins where an earlier download ended, so that its bytes do not count as speed.
            self._bar.reset(task, total=size, completed=done)
            self._begun = True

    def note(self, text: str) -> None:
        self._bar.update(self._shown(), note=text)

    def _shown(self) -> TaskID:
        if self._task is None:
            self._task = self._bar.add_task(self._label, total=None, note="")
        return self._task


def _bar() -> RichProgress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False, style="yellow"),
        console=Console(stderr=True),
        refresh_per_second=REFRESH_HZ,
    )
