import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_client import inference
from edge_client.cli import app
from edge_client.journal import Journal, Progress
from edge_client.private_store import PersonalTensors, PrivateStore, StoredState
from protocol.messages import Refuse

COMMANDS = ("doctor", "join", "enroll", "rotate", "status", "export", "predict")


def run(*arguments, env: dict | None = None):
    return CliRunner().invoke(app, [str(a) for a in arguments], env=env, catch_exceptions=False)


@pytest.fixture
def joined(client_toml, federation, tmp_path) -> Path:
    """The settings of a device in the middle of a federation."""
    path = client_toml("ws://127.0.0.1:9")
    journal = Journal(tmp_path / "state", "kitchen")
    journal.traffic.sent = 2_500_000
    journal.progress(Progress("training", 1, 3, 10), 8)
    journal.add_round(
        {"round": 0, "federated_loss": {"topic": 0.5}, "personal_loss": {"topic": 0.25}, "replaced": {"topic": True}}
    )
    journal.write_settings(federation)
    store = PrivateStore(tmp_path / "state", device="kitchen", federation="demo")
    store.commit(StoredState(0, False, PersonalTensors({}), {"topic": 0.5}, {"topic": 0.25}))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and re.search(rf"Examples?:.*tap-client\s+{command}", result.output, re.DOTALL)


def test_help_and_predict_do_not_import_torch(tmp_path):
    """Also when they fail: the check runs in the process of the command itself."""
    program = (
        "import sys\nfrom edge_client.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'onnx'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), code)\n"
    )

    def last_line(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.splitlines()[-1]

    assert last_line("--help") == "heavy: [] 0"
    assert last_line("join", "--help") == "heavy: [] 0"
    assert last_line("predict", str(tmp_path), "--text", "x") == "heavy: [] 2"


def test_status_of_a_device_at_work(joined):
    result = run("status", joined)
    assert "kitchen: training, step 3 of 10, took part in 1 of 8 rounds, sent 2.5 MB" in result.output
    assert "topic" in result.output and "0.2500" in result.output
    facts = json.loads(run("status", joined, "--json").output)
    assert facts["progress"]["phase"] == "training" and len(facts["rounds"]) == 1 and facts["results"] is None


def test_status_before_and_after(client_toml, joined, tmp_path):
    task = {
        "kind": "text_classification", "metric": "accuracy", "higher_is_better": True, "n_test": 9,
        "floor": 0.3, "federated": 0.5, "stage1": 0.6, "personal": 0.7,
    }  # fmt: skip
    long = "the_topic_of_a_ticket_" * 3
    Journal(tmp_path / "state", "kitchen").write_results(("decoder/topic",), {"topic": task, long: task}, {})
    output = run("status", joined).output
    assert "accuracy ↑" in output and "0.700" in output
    cells = [line.split()[0] for line in output.splitlines() if line.strip()]
    assert long in "".join(cells) and max(map(len, output.splitlines()[1:])) <= 80  # wrapped, not cut
    fresh = client_toml("ws://h:1").read_text().replace('"state"', '"other"')
    (tmp_path / "fresh.toml").write_text(fresh)
    assert "has not joined yet; run: tap-client join" in run("status", tmp_path / "fresh.toml").output


def assert_one_line(result, code: int, message: str) -> None:
    """Exit code, and one line on standard error that holds the message."""
    stderr = result.stderr
    assert result.exit_code == code, result.output
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr


def test_bad_arguments_are_one_line_with_code_2(joined, tmp_path, client_toml):
    assert_one_line(run("status", tmp_path / "absent.toml"), 2, "no such file")
    assert_one_line(run("status", joined, env={"TAP_DEVISE_ID": "x"}), 2, "did you mean TAP_DEVICE_ID?")
    assert_one_line(run("export", joined, "--task", "topics"), 2, "has no task 'topics'; its tasks are topic")
    text = joined.read_text()
    joined.write_text(text.replace("state_dir", "state_dri"))
    assert_one_line(run("join", joined), 2, "state_di")
    joined.write_text(text.replace('"state"', '"other"'))
    assert_one_line(run("export", joined), 2, "has no personal model yet; run: tap-client join")
    (tmp_path / "token").unlink()
    assert_one_line(run("join", joined), 2, "token file")
    assert_one_line(run("predict", tmp_path, "--text", "x"), 2, "task.json")


def test_join_with_a_foundation_that_is_not_there(client_toml):
    assert_one_line(run("join", client_toml("ws://127.0.0.1:9")), 2, "foundation': no such directory")


def test_join_with_a_data_file_that_is_not_there_connects_to_nobody(client_toml, coordinator, foundation):
    with in_a_thread(coordinator) as address:
        path = client_toml(address)
        (path.parent / "topics.csv").unlink()
        assert_one_line(run("join", path), 2, "topics.csv: no such file or folder; correct its path")
        assert coordinator.hellos == []


@pytest.fixture
def foundation(tmp_path) -> None:
    """Files that have a digest; nothing loads them."""
    (tmp_path / "foundation").mkdir()
    (tmp_path / "foundation" / "config.json").write_text('{"model_type": "flava"}')
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "foundation" / name).write_text("{}")


@contextlib.contextmanager
def in_a_thread(coordinator):
    """The fake coordinator beside this thread; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(coordinator.start(), loop).result(10)
        asyncio.run_coroutine_threadsafe(coordinator.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_join_without_a_coordinator(client_toml, foundation, tmp_path):
    path = client_toml("ws://127.0.0.1:9")
    assert_one_line(run("join", path, "--no-wait"), 1, "cannot reach the coordinator at ws://127.0.0.1:9")
    began = time.monotonic()
    result = run("join", path, "--max-wait", "1")
    assert result.exit_code == 1 and time.monotonic() - began > 1
    waiting, error = result.stderr.splitlines()
    assert waiting.endswith("retrying until it answers") and error.startswith("error: cannot reach the coordinator")
    assert "\x1b" not in result.output, "no bar where there is no terminal"
    assert json.loads((tmp_path / "state" / "progress.json").read_text())["phase"] == "waiting"


def test_sigterm_saves_and_ends_well(client_toml, foundation, tmp_path):
    """Also: a second process on the same state directory is turned away."""
    command = [sys.executable, "-m", "edge_client.cli", "join", str(client_toml("ws://127.0.0.1:9"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert "retrying" in child.stderr.readline()
        second = run("join", client_toml("ws://127.0.0.1:9"))
        child.send_signal(signal.SIGTERM)
        rest = child.stderr.read()
        assert child.wait(60) == 0
    assert rest == "stopped; everything is saved, run the command again to go on\n"
    assert_one_line(second, 1, "another process uses")


def test_a_wrong_token_ends_join_with_the_fix(coordinator, client_toml, foundation):
    with in_a_thread(coordinator) as address:
        assert_one_line(run("join", client_toml(address, token="old")), 2, "refused this device's token (HTTP 401)")


def test_a_bad_row_ends_join_with_the_line(coordinator, client_toml, foundation, tmp_path):
    with in_a_thread(coordinator) as address:
        path = client_toml(address)
        (tmp_path / "topics.csv").write_text("text,target\na,art\nb,arts\n")
        assert_one_line(run("join", path), 2, "topics.csv line 3: class 'arts' is not a class of task 'topic'")


def test_doctor_says_what_is_wrong_and_what_to_do(client_toml, tmp_path):
    path = client_toml("ws://127.0.0.1:9")
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "topics.csv").unlink()
    result = run("doctor", path)
    assert result.exit_code == 1
    lines = {line[5:].split(":")[0]: line for line in result.output.splitlines()}
    assert lines["config"].startswith("ok") and lines["torch"].startswith("ok") and lines["memory"].startswith("ok")
    assert lines["token"].startswith("fail") and "chmod 600" in lines["token"]
    assert lines["foundation"].startswith("fail") and "no such directory" in lines["foundation"]
    assert lines["data of topic"].startswith("fail") and "no such file or folder" in lines["data of topic"]
    assert lines["coordinator"].startswith("fail") and "check that it runs" in lines["coordinator"]


def test_doctor_of_a_device_that_is_ready(coordinator, joined, client_toml, foundation):
    with in_a_thread(coordinator) as address:
        result = run("doctor", client_toml(address), "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["ok"], facts
    details = {finding["what"]: finding["detail"] for finding in facts["findings"]}
    assert re.fullmatch(r"\d+ training and \d+ test examples", details["data of topic"])
    assert details["coordinator"].endswith("has the device's foundation and tasks")
    assert [hello.tasks for hello in coordinator.hellos] == [{}]  # it only looks


def test_doctor_reads_the_data_of_a_device_that_never_joined(coordinator, client_toml, foundation, tmp_path):
    with in_a_thread(coordinator) as address:
        path = client_toml(address)
        (tmp_path / "topics.csv").write_text("text,target\na,art\nb,arts\n")
        result = run("doctor", path)
    assert result.exit_code == 1
    assert "fail data of topic" in result.output and "class 'arts' is not a class of task 'topic'" in result.output
    assert not (tmp_path / "state" / "settings.json").exists()


def test_doctor_says_what_the_coordinator_refuses(coordinator, client_toml, foundation):
    coordinator.refuse = Refuse(code="wrong_federation", why="this coordinator serves 'other'", fix="correct it")
    with in_a_thread(coordinator) as address:
        result = run("doctor", client_toml(address))
    assert result.exit_code == 1
    assert "fail coordinator: the coordinator refuses this device: this coordinator serves 'other'; correct it\n" in (
        result.output
    )


def test_memory_that_is_not_free_is_said_before_anything_is_loaded(client_toml):
    path = client_toml("ws://127.0.0.1:9", more="[runtime]\nmemory_limit_mb = 99999999")
    assert_one_line(run("join", path), 1, "runtime.memory_limit_mb asks for 99999999; close other programs")


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"kind": "text_generation", "answer": "a red cat"}, "a red cat\n"),
        ({"kind": "image_generation", "path": "x.png", "width": 64, "height": 32}, "x.png (64 x 32)\n"),
        ({"kind": "text_classification", "probabilities": {"art": 0.75, "food": 0.25}}, " 75.0%  art\n 25.0%  food\n"),
    ],
)
def test_predict_prints_facts_for_people_and_programs(monkeypatch, facts, shown):
    given = {}

    def predict(directory, image, text, *, output, beams):
        given.update(directory=directory, image=image, text=text, output=output, beams=beams)
        return facts

    monkeypatch.setattr(inference, "predict", predict)
    arguments = ("predict", "model", "--image", "a.png", "--text", "x", "--output", "o.png", "--beams", "3")
    assert run(*arguments).output == shown
    assert given == {
        "directory": Path("model"),
        "image": Path("a.png"),
        "text": "x",
        "output": Path("o.png"),
        "beams": 3,
    }
    assert json.loads(run(*arguments, "--json").output) == facts
