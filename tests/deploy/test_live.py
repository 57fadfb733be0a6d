"""deploy.demo.live: what the table and the lines say of files that the test has written."""

import io
import json

import pytest
from rich.console import Console

from deploy.demo.live import WIDE, DeviceView, Display, live_table
from edge_client.journal import Journal, Progress

REPORTS = [
    {
        "round": 0,
        "federated_loss": {"emoji_group": 1.5, "caption": 2.25},
        "personal_loss": {"emoji_group": 1.625, "caption": 2.125},
        "replaced": {"emoji_group": True, "caption": True},
    },
    {
        "round": 3,
        "federated_loss": {"emoji_group": 0.8125, "caption": 1.0625},
        "personal_loss": {"emoji_group": 0.4375, "caption": 0.5625},
        "replaced": {"emoji_group": False, "caption": True},
    },
]


def write(directory, *, phase, round=-1, step=0, steps=0, sent=0, received=0, reports=()):
    """A device's state directory, by the writer that devices use."""
    journal = Journal(directory, directory.name)
    journal.traffic.sent, journal.traffic.received = sent, received
    journal.progress(Progress(phase, round, step, steps), 8)
    for report in reports:
        journal.add_round(report)
    return directory


@pytest.fixture
def kitchen(tmp_path):
    """A device in the fifth of eight rounds; it took part in the first and the fourth."""
    progress = {"phase": "personal", "round": 4, "step": 7, "steps": 20}
    return write(tmp_path / "kitchen", **progress, sent=1_200_000, received=3_400_000, reports=REPORTS)


def rendered(*directories, width=120, bars=True):
    console = Console(record=True, width=width, file=io.StringIO())
    views = [DeviceView(directory.name, directory) for directory in directories]
    console.print(live_table(views, 187.0, 2_340_000_000, bars=bars))
    return console.export_text()


def test_the_title_counts_rounds_from_one(kitchen, tmp_path):
    assert DeviceView("kitchen", kitchen).round == 5
    title = rendered(write(tmp_path / "hall", phase="federated", round=3), kitchen).splitlines()[0]
    assert title.rstrip().split("   ") == ["round 5 of 8", "3 min 07 s", "2.34 GB of memory"]
    first = rendered(write(tmp_path / "attic", phase="federated", round=0))
    assert first.startswith("round 1 of 8 ")


def test_a_row_says_phase_last_losses_replacements_and_bytes(kitchen):
    _, header, first, second = (line.split() for line in rendered(kitchen, bars=False).splitlines())
    assert header == ["device", "task", "fed.", "|", "own", "loss", "replaced", "bytes"]
    losses, replaced = ["0.812", "|", "0.438"], ["1", "of", "2"]
    assert first == ["kitchen", "emoji", "group", *losses, *replaced, "4.6", "MB"]
    losses, replaced = ["1.062", "|", "0.562"], ["2", "of", "2"]
    assert second == ["personal", "set", "7/20", "caption", *losses, *replaced]


def test_every_device_has_its_own_row_in_order(kitchen, tmp_path):
    other = {**REPORTS[0], "federated_loss": {"topic": 9.5}, "personal_loss": {"topic": 7.5}, "replaced": {}}
    hall = write(tmp_path / "hall", phase="idle", round=0, received=999, reports=[other])
    text = rendered(hall, kitchen)
    (row,) = [line for line in text.splitlines() if line.startswith("hall")]
    assert "topic" in row and "9.500 | 7.500" in row and "0 of 1" in row and row.endswith(" 999 B")
    assert text.index("hall") < text.index("kitchen") and "idle" in text


@pytest.mark.parametrize(
    ("phase", "shown"),
    [("federated", "federated set"), ("student", "distilling"), ("teacher", "teacher"), ("waiting", "waiting")],
)
def test_phases_are_said_in_words_and_waiting_is_lost(tmp_path, phase, shown):
    directory = write(tmp_path / "hall", phase=phase, round=1, step=2, steps=9)
    assert f"{shown} 2/9" in rendered(directory)
    assert DeviceView("hall", directory).lost == (phase == "waiting")


def test_a_bar_shows_how_far_a_phase_is(tmp_path):
    def filled(step):
        console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        view = DeviceView("hall", write(tmp_path / "hall", phase="federated", round=0, step=step, steps=10))
        before = console.file.tell()
        console.print(live_table([view], 0.0, 0))
        return console.file.getvalue()[before:]

    assert filled(1) != filled(9)
    assert "━" in rendered(tmp_path / "hall") and "━" not in rendered(tmp_path / "hall", bars=False)


@pytest.mark.parametrize(("width", "bars"), [(80, False), (WIDE, True)])
def test_the_table_fits_its_width(kitchen, width, bars):
    lines = rendered(kitchen, width=width, bars=bars).splitlines()
    assert max(map(len, lines)) <= width
    assert "4.6 MB" in lines[2] and "0.812 | 0.438" in lines[2] and not any("…" in line for line in lines)


def test_devices_that_have_written_nothing_are_starting(tmp_path):
    text = rendered(tmp_path / "hall", tmp_path / "kitchen")
    assert text.startswith("round 0 of ?") and text.count("starting") == 2 and text.count(" 0 B") == 2


def test_a_progress_file_that_is_being_replaced_counts_as_starting(kitchen):
    (kitchen / "progress.json").write_text("{")
    text = rendered(kitchen)
    assert "starting" in text and "0.812 | 0.438" in text


def test_without_a_terminal_every_round_and_the_end_are_told_once(kitchen):
    told = io.StringIO()

    def lines():
        display.update(12.5, 0)
        found = told.getvalue().splitlines()
        told.seek(0)
        told.truncate()
        return found

    with Display(Console(file=told, width=60), {"kitchen": kitchen}) as display:
        first, second = lines()
        shown = "round 1/8: loss emoji group 1.500 | 1.625 replaced, caption 2.250 | 2.125 replaced  (4.6 MB)"
        assert first == f"  12.5 s  {'kitchen':<22} {shown}"
        assert "round 4/8: loss emoji group 0.812 | 0.438, caption 1.062 | 0.562 replaced" in second
        assert lines() == []
        with (kitchen / "rounds.jsonl").open("a") as file:
            file.write(json.dumps({**REPORTS[0], "round": 4}) + "\n")
        (third,) = lines()
        assert "round 5/8: loss emoji group 1.500" in third
        write(kitchen, phase="done", round=4)
        (last,) = lines()
        assert last.split()[2:4] == ["kitchen", "done"]
        assert lines() == []


def test_on_a_terminal_the_table_is_redrawn(kitchen):
    told = io.StringIO()
    console = Console(file=told, width=120, force_terminal=True)
    with Display(console, {"kitchen": kitchen}) as display:
        (view,) = display.update(1.0, 0)
        assert (view.round, view.phase, view.bytes) == (5, "personal set", 4_600_000)
        assert "round 5 of 8" in told.getvalue() and "personal set 7/20" in told.getvalue()
        write(kitchen, phase="student", round=7, step=1, steps=2)
        display.update(2.0, 0)
    assert "round 8 of 8" in told.getvalue() and "distilling 1/2" in told.getvalue()
