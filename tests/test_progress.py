"""How far rounds are: lines in a file, a bar on a terminal, and the time that is left."""

import io
import logging
import re
import sys

import pytest

from fedprune import progress
from fedprune.progress import Part


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self) -> list[str]:
        """The lines as a terminal shows them, which goes back at a carriage return."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells: list[str] = []
            for text in line.split("\r"):
                cells[: len(text)] = text
            lines.append("".join(cells).rstrip())
        return lines


def test_a_file_gets_few_lines():
    """4000 rounds of 1/64 s, in all 62.5 s: one line every 10 s, and those of start and end."""
    clock, file = Clock(), io.StringIO()
    shown = progress.Progress([Part("program0", 4000)], file, False, clock)
    shown.start()
    for done in range(1, 4001):
        clock.now += 1 / 64
        shown.advance(done, 0.5)
    shown.close()
    lines = file.getvalue().splitlines()
    assert lines[:2] == [
        "program0: compiling",
        "program0: round 1 of 4000, mean accuracy 0.500",
    ]
    assert lines[2] == "program0: round 641 of 4000, mean accuracy 0.500, 52 s left"
    assert lines[-1] == "program0: round 4000 of 4000, mean accuracy 0.500"
    assert len(lines) == 2 + 6 + 1


def test_the_time_that_is_left_is_that_of_all_programs():
    """By hand: the first program compiles 20 s and then takes 3 s for a round of 2 runs, so the
    second takes 20 s + 10 rounds x 4 runs x 1.5 s, until it has rounds of its own, of 5 s."""
    clock = Clock()
    estimate = progress.Estimate([Part("a", 10, 2), Part("b", 10, 4)], clock)
    estimate.start(0)
    clock.now = 20 + 2 * 3
    assert estimate.advance(2)
    assert estimate.left() is None  # how much of it was compilation, nobody knows
    clock.now += 2 * 3
    assert not estimate.advance(4)
    assert estimate.left() == pytest.approx(6 * 3 + 20 + 10 * 4 * 1.5)
    clock.now += 6 * 3
    estimate.advance(10)
    assert estimate.left() == pytest.approx(20 + 10 * 4 * 1.5)
    estimate.start(2)  # two rounds were there before
    clock.now += 40
    estimate.advance(4)
    assert estimate.left() == pytest.approx(6 * 4 * 1.5)
    clock.now += 5
    estimate.advance(5)
    # Compilation is behind, and the rounds of this program say how long its others take.
    assert estimate.left() == pytest.approx(5 * 5)


def test_programs_of_one_call_each_are_measured_whole():
    clock = Clock()
    estimate = progress.Estimate([Part("a", 8), Part("b", 8, 3)], clock)
    estimate.start(0)
    clock.now = 16
    estimate.advance(8)
    assert estimate.left() == pytest.approx(8 * 3 * 2)


def test_nothing_is_torn_on_a_terminal(monkeypatch):
    """A bar a program; what is printed meanwhile, in whichever way, is a line of its own above."""
    terminal = Terminal()
    handler = logging.StreamHandler(terminal)
    log = logging.getLogger("test_progress")
    log.addHandler(handler)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    with progress.show([Part("a", 2), Part("b", 2)]) as shown:
        for _ in range(2):
            shown.start()
            shown.advance(1, 0.25)
            log.warning("a record")
            print("a", "print", end="")
            print(" in parts")
            print("as warnings do", file=sys.stderr)
            shown.advance(2, 0.75)
        print("the end", end="")
    log.removeHandler(handler)
    assert (sys.stderr, handler.stream) == (terminal, terminal)
    said = ["^a record$", "^a print in parts$", "^as warnings do$"]
    end = r"\|.*\| 2/2 rounds, took 0 s, accuracy 0.750$"
    for line, wanted in zip(
        terminal.screen(),
        [*said, r"^a \(1/2\) 100%" + end, *said, r"^b \(2/2\) 100%" + end, "^the end$"],
        strict=True,
    ):
        assert re.search(wanted, line), (wanted, line)


def test_a_part_that_was_done_before_is_not_shown(capsys):
    with progress.show([Part("a", 3), Part("b", 3)]) as shown:
        shown.start(3)
        shown.start(1)
        shown.advance(3)
    assert capsys.readouterr().err.splitlines() == ["b (2/2): compiling", "b (2/2): round 3 of 3"]
    with progress.show([Part("a", 3)], enabled=False) as shown:
        shown.start()
        shown.advance(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3600 * 3 + 290, "3 h 05 min")],
)
def test_durations(seconds, said):
    assert progress.duration(seconds) == said
