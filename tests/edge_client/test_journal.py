import json

import pytest

from edge_client.journal import Journal, Progress, read_json, read_rounds, read_settings
from tap_core.errors import UsageError


def report(number: int, replaced: bool = True) -> dict:
    return {"round": number, "federated_loss": {"a": 0.5}, "personal_loss": {"a": 0.4}, "replaced": {"a": replaced}}


def test_progress_is_live_and_byte_totals_outlive_the_process(tmp_path):
    journal = Journal(tmp_path, "kitchen", clock=lambda: 12.5)
    journal.traffic.sent, journal.traffic.received = 10, 20
    journal.progress(Progress("training", 2, 3, 10), 8)
    assert json.loads((tmp_path / "progress.json").read_text()) == {
        "device": "kitchen", "phase": "training", "round": 2, "rounds": 8, "step": 3, "steps": 10,
        "bytes_sent": 10, "bytes_received": 20, "updated_at": 12.5,
    }  # fmt: skip
    assert Journal(tmp_path, "kitchen").traffic.received == 20


def test_unchanged_progress_is_not_written_again(tmp_path):
    journal = Journal(tmp_path, "kitchen")
    journal.progress(Progress(), 8)
    (tmp_path / "progress.json").unlink()
    journal.progress(Progress(), 8)
    assert not (tmp_path / "progress.json").exists()
    journal.traffic.sent += 1
    journal.progress(Progress(), 8)
    assert (tmp_path / "progress.json").exists()


def test_progress_emptied_by_a_power_cut_does_no_harm(tmp_path):
    (tmp_path / "progress.json").write_text("")
    assert Journal(tmp_path, "kitchen").traffic.sent == 0
    with pytest.raises(UsageError, match="is damaged; remove it"):
        read_json(tmp_path / "progress.json")


def test_reports_of_rounds_that_were_never_committed_are_dropped(tmp_path):
    journal = Journal(tmp_path, "kitchen")
    for number in range(3):
        journal.add_round(report(number))
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "fed')
    journal.forget_rounds_after(1)
    journal.add_round(report(2))
    assert [r["round"] for r in read_rounds(tmp_path)] == [0, 1, 2]
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3


def test_results_hold_what_the_demo_and_reports_read(tmp_path):
    journal = Journal(tmp_path, "kitchen")
    journal.add_round(report(0))
    journal.add_round(report(4, replaced=False))
    journal.write_results(("decoder/a",), {"a": {"metric": "accuracy"}}, {"a": []})
    results = read_json(tmp_path / "results.json")
    assert results is not None and set(results) == {
        "device", "components", "bytes_sent", "bytes_received", "replacements", "tasks", "samples"
    }  # fmt: skip
    assert results["replacements"] == [
        {"round": 0, "task": "a", "replaced": True},
        {"round": 4, "task": "a", "replaced": False},
    ]


def test_settings_are_kept_for_the_next_start(tmp_path, federation):
    assert read_settings(tmp_path) is None
    Journal(tmp_path, "kitchen").write_settings(federation)
    assert read_settings(tmp_path) == federation
