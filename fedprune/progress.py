"""How far rounds are, on standard error.

On a terminal there is one live bar, of the program that runs; that of a program that has ended
stays above it as a line. Whatever else Python prints meanwhile (log records, warnings, ``print``)
goes above the bar and never into it. In a file or a pipe there are lines instead: when a program
starts and ends, after its first rounds, and in between at most one every ``EVERY`` seconds.

The remaining time is that of all programs. What is left of a program that runs takes the seconds of
its own rounds so far; a program that has not begun takes those of the others' rounds, in proportion
to its rounds times its runs. The first rounds of a program come with its compilation, which is
measured as what they take beyond the later ones, and is expected once more of each program to come.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

EVERY = 10.0
"""seconds, at least, from one line to the next in a file"""


class Part(NamedTuple):
    """A program of rounds that is to be shown."""

    name: str
    rounds: int
    runs: int = 1
    """that it computes at once; a round of two takes about twice as long"""


@contextlib.contextmanager
def show(parts: Sequence[Part], enabled: bool = True) -> Iterator[Progress]:
    """Shows parts, one after another: ``start`` each, then ``advance`` to the rounds it has done.

        with progress.show([progress.Part("simulation", 100)]) as shown:
            shown.start()
            for done in range(10, 101, 10):
                ...
                shown.advance(done, accuracy)

    Args:
      parts: in their order.
      enabled: False shows nothing, as on all processes but the first.
    """
    stream = sys.stderr
    live = enabled and stream.isatty()
    shown = Progress(parts, stream if enabled else None, live)
    with _above(shown) if live else contextlib.nullcontext():
        try:
            yield shown
        finally:
            shown.close()


class Progress:
    """What ``show`` gives."""

    def __init__(
        self,
        parts: Sequence[Part],
        stream: TextIO | None,
        live: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts, self._stream, self._live, self._clock = parts, stream, live, clock
        self._estimate = Estimate(parts, clock)
        self._at, self._said = -1, 0.0
        self._bar: Any = None

    def start(self, done: int = 0) -> None:
        """The next part begins, or goes on after so many rounds; first it is compiled. Of one whose
        rounds are all done nothing is shown."""
        self.close()
        self._at += 1
        self._estimate.start(done)
        if done == self._parts[self._at].rounds:
            return
        if self._live:
            self._bar = self._new_bar(done)
        elif self._stream:
            self._say(f"{self._title()}: compiling")

    def advance(self, done: int, accuracy: float | None = None) -> None:
        """The part has so many rounds behind it, and its models this accuracy on average."""
        first, rounds = self._estimate.advance(done), self._parts[self._at].rounds
        left = self._estimate.left()
        if self._bar is not None:
            notes = [] if accuracy is None else [f"accuracy {accuracy:.3f}"]
            if done == rounds:
                notes.insert(0, f"took {duration(self._estimate.taken())}")
            elif left is not None:
                notes.insert(0, f"{duration(left)} left")
            self._bar.set_description_str(self._title(), refresh=False)
            self._bar.set_postfix_str(", ".join(notes), refresh=False)
            self._bar.update(done - self._bar.n)
            return
        due = first or done == rounds or self._clock() - self._said >= EVERY
        if self._stream and due:
            text = f"{self._title()}: round {done} of {rounds}"
            text += "" if accuracy is None else f", mean accuracy {accuracy:.3f}"
            self._say(text + (f", {duration(left)} left" if left else ""))

    def close(self) -> None:
        """Leaves the bar as it is, as a line."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def above(self, stream: TextIO, text: str) -> None:
        """Prints lines where no bar is."""
        if self._bar is None:
            stream.write(text)
            stream.flush()
            return
        with self._bar.get_lock():
            self._bar.clear(nolock=True)
            stream.write(text)
            stream.flush()
            self._bar.refresh(nolock=True)

    def _title(self) -> str:
        """The part's name, and which of how many it is."""
        count = len(self._parts)
        return self._parts[self._at].name + (f" ({self._at + 1}/{count})" if count > 1 else "")

    def _new_bar(self, done: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=f"{self._title()}, compiling",
            total=self._parts[self._at].rounds,
            initial=done,
            file=self._stream,
            miniters=1,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} rounds{postfix}",
        )

    def _say(self, text: str) -> None:
        assert self._stream is not None
        print(text, file=self._stream, flush=True)
        self._said = self._clock()


class _Measured(NamedTuple):
    """Of a part, as far as it was computed by this process."""

    before: int
    """rounds that were done before"""
    first: int = 0
    """rounds up to the end of the first call, which compiled as well"""
    first_seconds: float = 0.0
    later: int = 0
    """rounds since then"""
    later_seconds: float = 0.0


class Estimate:
    """Seconds that are left, of all parts."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float]) -> None:
        self._parts, self._clock = parts, clock
        self._measured: dict[int, _Measured] = {}
        self._at, self._began = -1, 0.0

    def start(self, done: int) -> None:
        """As of ``Progress``."""
        self._at, self._began = self._at + 1, self._clock()
        self._measured[self._at] = _Measured(done)

    def advance(self, done: int) -> bool:
        """As of ``Progress``; whether these were the part's first rounds."""
        m, seconds = self._measured[self._at], self._clock() - self._began
        new = done - m.before
        if not m.first:
            self._measured[self._at] = m._replace(first=new, first_seconds=seconds)
            return True
        self._measured[self._at] = m._replace(
            later=new - m.first, later_seconds=seconds - m.first_seconds
        )
        return False

    def taken(self) -> float:
        """Seconds of the part that runs, from its start to its last ``advance``."""
        m = self._measured[self._at]
        return m.first_seconds + m.later_seconds

    def left(self) -> float | None:
        """Seconds until the last part ends; None while nothing tells."""
        part, m = self._parts[self._at], self._measured[self._at]
        now = part.rounds - m.before - m.first - m.later
        to_come = sum(p.rounds * p.runs for p in self._parts[self._at + 1 :])
        if not now and not to_come:
            return 0.0
        unit = self._unit()
        if unit is None:
            return None
        seconds, compiling = unit
        own = m.later_seconds / m.later if m.later else seconds * part.runs
        return now * own + to_come * seconds + compiling * len(self._parts[self._at + 1 :])

    def _unit(self) -> tuple[float, float] | None:
        """(seconds of a round of one run, seconds to compile a part), on average."""
        known = [(self._parts[i].runs, m) for i, m in self._measured.items()]
        steady = [(runs, m) for runs, m in known if m.later]
        if steady:
            done = sum(runs * m.later for runs, m in steady)
            extra = [m.first_seconds - m.later_seconds / m.later * m.first for _, m in steady]
            compiling = sum(max(0.0, seconds) for seconds in extra) / len(extra)
            return sum(m.later_seconds for _, m in steady) / done, compiling
        whole = [  # of parts of one call only: compilation is in their rounds
            (runs, m)
            for (runs, m), i in zip(known, self._measured, strict=True)
            if m.first and m.before + m.first == self._parts[i].rounds
        ]
        if not whole:
            return None
        done = sum(runs * m.first for runs, m in whole)
        return sum(m.first_seconds for _, m in whole) / done, 0.0


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Above:
    """A stream of a terminal whose lines are printed above the bar, as soon as they are whole."""

    def __init__(self, stream: TextIO, shown: Progress) -> None:
        self._stream, self._shown, self._rest = stream, shown, ""

    def write(self, text: str) -> int:
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._shown.above(self._stream, lines + newline)
        return len(text)

    def end(self) -> None:
        """Prints what is left of a line."""
        self._stream.write(self._rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _above(shown: Progress) -> Iterator[None]:
    """Whatever Python prints on the terminal goes above the bar."""
    real = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    through = {name: _Above(s, shown) for name, s in real.items() if s.isatty()}
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    handlers = [
        (handler, handler.stream, through[name])
        for logger in loggers
        for handler in getattr(logger, "handlers", ())  # names without a logger have none
        if isinstance(handler, logging.StreamHandler)
        for name in through
        if handler.stream is real[name]
    ]
    for name, stream in through.items():
        setattr(sys, name, stream)
    for handler, _, stream in handlers:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler, before, _ in handlers:
            handler.setStream(before)
        for name, stream in through.items():
            setattr(sys, name, real[name])
            stream.end()
