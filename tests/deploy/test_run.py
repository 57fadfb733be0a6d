"""deploy.demo.run: a demo with two small devices over real processes and sockets, and demos that fail."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from deploy.demo.processes import ChildFailed, Children, child_environment, termination_interrupts
from deploy.demo.run import FEDERATION, run_demo
from deploy.demo.shards import DeviceTask
from tap_core.errors import TapError, UsageError

FOUNDATION = FEDERATION.parent / "foundation" / "tiny-flava"
SETTINGS = f"""
name = "small"
foundation = {json.dumps(str(FOUNDATION))}
seed = 7

[tasks.feeling]
kind = "text_classification"
inputs = ["text"]
classes = ["glad", "sad"]

[tasks.topic]
kind = "text_classification"
inputs = ["text"]
classes = ["food", "sky"]

[rounds]
total = 2
clients_per_round = 2
min_devices = 2
min_updates = 2
deadline = 120

[training]
steps = 2
batch_size = 4
warmup_rounds = 0
text_length = 16

[algorithm.distillation]
steps = 2
"""
ROWS = {
    "feeling": [
        ("what a happy day", "glad"),
        ("tears and sorrow", "sad"),
        ("joy and laughter", "glad"),
        ("grief", "sad"),
    ],
    "topic": [
        ("bread and butter", "food"),
        ("clouds and stars", "sky"),
        ("a bowl of soup", "food"),
        ("the moon", "sky"),
    ],
}


def small_shards(directory):
    devices = {}
    for task, rows in ROWS.items():
        folder = directory / f"{task}-device"
        folder.mkdir(parents=True)
        paths = {}
        for split, shown in (("train", rows), ("test", [(f"{text} again", label) for text, label in rows])):
            paths[split] = folder / f"{split}.csv"
            lines = ["text,target", *(f"{text},{label}" for text, label in shown)]
            paths[split].write_text("\n".join(lines) + "\n")
        devices[folder.name] = (DeviceTask(task, paths["train"], paths["test"]),)
    return devices


def shards_with_a_wrong_class(directory):
    devices = small_shards(directory)
    wrong = directory / "topic-device" / "train.csv"
    wrong.write_text(wrong.read_text().replace("sky", "sea"))
    return devices


@pytest.fixture
def federation(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(SETTINGS)
    return path


def processes_below(directory):
    """Processes that name ``directory`` on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(directory) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def test_a_small_demo_leaves_its_report_and_no_process(federation, tmp_path):
    out, told = tmp_path / "out", io.StringIO()
    report = run_demo(out, federation=federation, shards=small_shards, console=Console(file=told), time_limit=300)
    values = json.loads((out / "report.json").read_text())
    assert values == json.loads(report.model_dump_json())
    assert list(values["devices"]) == ["feeling-device", "topic-device"]
    for device in values["devices"].values():
        assert {"mote/expert/text/shared", "encoder/text"} <= set(device["components"])
        assert device["bytes_sent"] > 100_000
        assert device["bytes_received"] > 100_000
        assert [entry["round"] for entry in device["replacements"]] == [0, 1]
        assert device["replacements"][0]["replaced"]
        for scores in device["tasks"].values():
            assert (scores["metric"], scores["n_test"]) == ("accuracy", 4)
    assert [export["task"] for export in values["exports"]] == ["feeling", "topic"]
    for export in values["exports"]:
        assert export["max_abs_diff"] < 1e-3
        assert (out / export["path"] / "model.onnx").is_file()
    page = (out / "report.html").read_text()
    assert "Two devices, one federation" in page
    lines = told.getvalue()
    assert "round 2/2: loss feeling" in lines
    assert "stage 1" in lines
    assert processes_below(out) == []
    run_again = Path(out, "federation", "manifest.json").stat().st_mtime_ns
    with pytest.raises(UsageError, match="not from an earlier demo"):
        run_demo(tmp_path, federation=federation, shards=small_shards)
    assert Path(out, "federation", "manifest.json").stat().st_mtime_ns == run_again


def test_a_failing_device_ends_the_demo_with_its_reason_and_no_process(federation, tmp_path):
    out, told = tmp_path / "out", io.StringIO()
    with pytest.raises(ChildFailed, match="topic-device failed with exit code 2: .*sea") as caught:
        run_demo(out, federation=federation, shards=shards_with_a_wrong_class, console=Console(file=told))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert processes_below(out) == []
    assert not (out / "report.json").exists()


def test_settings_that_are_wrong_end_the_demo_before_it_writes_anything(federation, tmp_path):
    federation.write_text(SETTINGS.replace("[rounds]", "[round]"))
    with pytest.raises(UsageError, match="unknown key 'round'"):
        run_demo(tmp_path / "out", federation=federation, shards=small_shards)
    assert not (tmp_path / "out").exists()


def test_a_demo_that_takes_too_long_ends_with_no_process(federation, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TapError, match="took longer than 0 s; still running: "):
        run_demo(out, federation=federation, shards=small_shards, console=Console(file=io.StringIO()), time_limit=0)
    assert processes_below(out) == []


def test_children_end_with_the_block_even_if_they_ignore_sigterm(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.demo.processes.TERMINATE_SECONDS", 0.5)
    (tmp_path / "stubborn.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Children(tmp_path / "logs") as children:
        child = children.start("stubborn", "stubborn", [])
        while "ready" not in child.log.read_text():
            time.sleep(0.02)
        assert children.running() == ["stubborn"]
        assert children.measure() > 1_000_000
    assert child.process.returncode == -signal.SIGKILL


def test_the_failure_names_the_error_line_of_the_log(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(
        "import sys\nprint('before')\nprint('error: no such thing; mend it')\nsys.exit(2)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Children(tmp_path / "logs") as children:
        child = children.start("worker", "failing", [])
        child.process.wait()
        with pytest.raises(ChildFailed, match="worker failed with exit code 2: no such thing; mend it") as caught:
            children.running()
    assert caught.value.tail == "before\nerror: no such thing; mend it"


def test_a_signal_that_comes_while_a_process_starts_leaves_none(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("deploy.demo.processes.subprocess.Popen", Popen)
    with pytest.raises(KeyboardInterrupt), termination_interrupts(), Children(tmp_path / "logs") as children:
        children.start("sleeper", "sleeper", [])
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_children_do_not_inherit_settings(monkeypatch):
    monkeypatch.setenv("TAP_PORT", "1")
    environment = child_environment()
    assert "TAP_PORT" not in environment
    assert (environment["OMP_NUM_THREADS"], environment["HF_HUB_OFFLINE"]) == ("1", "1")


def test_sigterm_ends_the_demo_and_all_its_processes(federation, tmp_path):
    out = tmp_path / "out"
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import test_run as t; from deploy.demo.run import run_demo\n"
        "try: run_demo(Path(sys.argv[2]), federation=Path(sys.argv[3]), shards=t.small_shards)\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(out), str(federation)]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while not (out / "logs" / "init.log").exists() and time.monotonic() < limit and demo.poll() is None:
            time.sleep(0.05)
        assert demo.poll() is None
        demo.terminate()
        assert demo.wait(30) == 130
    finally:
        demo.kill()
    assert processes_below(out) == []
