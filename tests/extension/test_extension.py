"""What CONTRIBUTING.md promises: a package from outside adds one of each thing, and a whole federation runs with it.

The package is in `toy/`, with the entry points that an installed one has. Coordinator and devices are processes of
their own over real sockets; the simulation gives the same bits; the export predicts without torch.
"""

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_federation import LIMIT, command, free_port

TOY = Path(__file__).parent / "toy"
DEVICES = ("left", "middle", "right")
EXPORTS = "left"
FEDERATION = """
name = "toys"
foundation = "foundation"
[tasks.stars]
kind = "rating"
inputs = ["text"]
[algorithm]
name = "toy_tap"
indicator = "surprise"
decision = "mostly"
[algorithm.margins]
rating = 0.5
[rounds]
sampler = "in_turn"
total = 4
clients_per_round = 2
min_updates = 2
min_devices = 3
deadline = 300
[training]
steps = 10
batch_size = 8
learning_rate = 3e-3
"""
CLIENT = """
coordinator = "ws://127.0.0.1:{port}"
federation = "toys"
device_id = "{device}"
token_file = "token"
state_dir = "state"
foundation = "../foundation"
export = {export}
[runtime]
device = "cpu"
threads = 1
[tasks.stars]
train = "train.jsonl"
test = "test.jsonl"
"""


@pytest.fixture(scope="module")
def environment():
    path = os.pathsep.join([str(TOY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory, mini_foundation):
    root = tmp_path_factory.mktemp("toys")
    foundation = root / "foundation"
    foundation.mkdir()
    shutil.copy(mini_foundation / "tokenizer.json", foundation)
    (foundation / "config.json").write_text('{"model_type": "toy"}')
    words = len((mini_foundation / "vocab.txt").read_text().splitlines())
    vectors = np.random.default_rng(0).normal(size=(words, 16)).astype(np.float32)
    save_file({"words": vectors}, foundation / "model.safetensors")
    (root / "federation.toml").write_text(FEDERATION)
    port = free_port()
    for seed, device in enumerate(DEVICES):
        home = root / device
        home.mkdir()
        (home / "client.toml").write_text(
            CLIENT.format(port=port, device=device, export=str(device == EXPORTS).lower())
        )
        draw = random.Random(seed)
        for name, count in (("train", 40), ("test", 12)):
            rows = []
            for index in range(count):
                stars = draw.randint(1, 5)
                text = " ".join(["a"] * stars + ["b"] * (5 - stars) + [draw.choice("cdefgh")] * (index % 7))
                rows.append({"text": f"{text} {name} {index} {device}", "target": stars})
            (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root, port


def run(environment, module, *arguments):
    done = forked.run(command(module, *arguments), LIMIT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def predicted(environment, *arguments):
    """What `tap-client predict` says; with an interpreter of its own, which has imported nothing."""
    line = command("edge_client.cli", "predict", *arguments)
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_federation_of_things_from_outside(site, environment):
    root, port = site
    directory = root / "federation"
    run(environment, "deploy.tap.cli", "init", root / "federation.toml", "--out", directory)
    for device in DEVICES:
        run(environment, "coordinator.cli", "enroll", device, directory, "--token-file", root / device / "token")
    options = ["--port", port, "--http-port", free_port()]
    with (root / "log").open("wb") as log:

        def start(*line):
            return forked.Forked(command(*line), stdout=log, stderr=log, env=environment)

        serving = start("coordinator.cli", "serve", directory, *options)
        joining = [start("edge_client.cli", "join", root / device / "client.toml") for device in DEVICES]
    try:
        assert [process.wait(LIMIT) for process in joining] == [0, 0, 0]
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.wait(LIMIT)
    simulated = json.loads(
        run(environment, "deploy.tap.cli", "simulate", root / "federation.toml", "--devices", root, "--json")
    )["devices"]
    for device in DEVICES:
        results = json.loads((root / device / "state" / "results.json").read_text())["tasks"]["stars"]
        assert results == simulated[device]["tasks"]["stars"]
        assert results["kind"] == "rating" and results["metric"] == "stars_off"
        assert results["personal"] < results["floor"]
    rounds = [json.loads(line) for device in DEVICES for line in (root / device / "state" / "rounds.jsonl").open()]
    assert sorted(line["round"] for line in rounds) == [0, 0, 1, 1, 2, 2, 3, 3]
    model = root / EXPORTS / "state" / "export" / "stars"
    facts = json.loads(predicted(environment, model, "--text", "a a a a a", "--json"))
    assert facts == {"task": "stars", "kind": "rating", "stars": facts["stars"]} and facts["stars"] in range(1, 6)
    assert predicted(environment, model, "--text", "a b b b b").strip().strip("*") == ""


def test_without_the_package_its_names_are_one_line(site):
    root, _ = site
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONPATH": os.environ.get("PYTHONPATH", "")
    }
    done = subprocess.run(
        command("deploy.tap.cli", "init", root / "federation.toml", "--out", root / "other"),
        capture_output=True,
        text=True,
        env=plain,
        check=False,
    )
    assert done.returncode == 2 and "no algorithm 'toy_tap'" in done.stderr and len(done.stderr.splitlines()) == 1
