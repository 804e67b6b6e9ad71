"""Progress of long work."""

import io

from rich.console import Console

from starec_ray.progress import phase


def test_progress_in_a_log_is_plain_lines_and_not_too_many(monkeypatch) -> None:
    clock = iter(range(0, 10_000, 3))  # each look at the clock is 3 s later
    monkeypatch.setattr("starec_ray.progress.time.monotonic", lambda: float(next(clock)))
    console = Console(record=True, file=io.StringIO(), width=200, force_terminal=False)
    with phase("anchor", 20, console=console) as progress:
        for step in range(20):
            progress.advance(note=f"step {step}")
    lines = console.export_text().splitlines()
    assert lines[0] == "anchor: 0/20"
    assert lines[1] == "anchor: 4/20 in 12.0 s, 48.0 s left  (step 3)"
    assert lines[-1].startswith("anchor: 20/20 in 1 min")
    assert len(lines) <= 8


def test_on_a_terminal_an_inner_phase_is_shown_while_it_lasts() -> None:
    console = Console(force_terminal=True, record=True, width=120, file=io.StringIO())
    with phase("outer [x]", 2, console=console) as outer:
        with phase("inner", 3, console=console) as inner:
            inner.advance(3, note="three")
        outer.advance(note="one")
    text = console.export_text()
    assert "inner" in text
    last = text.rstrip().rpartition("outer [x]")[2]  # the inner one is gone, the outer one stays
    assert "1/2" in last and "one" in last and "inner" not in last
