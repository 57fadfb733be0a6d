"""`tap foundation info`: the facts are the files', the counts are those of a real pass, and mistakes are one line."""

import json
import re
from pathlib import Path

import families
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from deploy.tap.cli import app
from deploy.tap.foundation_info import count, dummy_batch, example_federation, foundation_info, rounded
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import build_model
from tap_core.tasks.batch import TaskBatch


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("info") / "vilt"
    families.write_vilt(directory, layers=8)
    return str(directory)


def run(*arguments: object):
    return CliRunner().invoke(app, ["foundation", "info", *map(str, arguments)], catch_exceptions=False)


def test_the_facts_are_the_foundations(vilt: str) -> None:
    result = run(vilt, "--json")
    assert result.exit_code == 0, result.output
    info = json.loads(result.stdout)
    about = info["foundation"]
    assert (about["family"], about["layers"], about["stage_layers"]) == ("vilt", 8, 4)
    assert (about["hidden_size"], about["image_size"], about["text_positions"], about["vocabulary"]) == (32, 16, 32, 22)
    assert about["encoder_layers"] == {"image": 0, "text": 0}
    assert about["special_tokens"]["start"] == {"id": 2, "text": "[CLS]"}
    config = example_federation(vilt)
    model = build_model(config, config.tasks_named(config.tasks), load_foundation(vilt))
    assert {name: facts["bytes"] for name, facts in info["components"].items()} == {
        name: sum(value.nbytes for value in group.values()) for name, group in model.state("federated").items()
    }
    assert info["components"]["encoder/text"] == {"parameters": 0, "bytes": 0}
    assert info["trainable_parameters"] == sum(p.numel() for p in model.trainable("federated").values())
    assert 0 < info["trainable_share"] < 1


def test_what_is_counted_without_values_is_what_a_real_pass_takes(vilt: str) -> None:
    config = example_federation(vilt)
    tasks = config.tasks_named(["answer", "text_class"])

    def fresh():
        model = build_model(config, tasks, load_foundation(vilt)).train()
        for parameter in model.trainable("federated").values():
            parameter.requires_grad_(True)
        return model

    real, shadow = fresh(), fresh().to("meta")
    for task in tasks:
        batch = dummy_batch(shadow, task, 3)
        image, ids, mask = (None if t is None else torch.ones_like(t, device="cpu") for t in inputs(batch))
        filled = TaskBatch(task, image, ids, mask, torch.ones_like(batch.target, device="cpu"))
        operations, kept = count(shadow, batch)
        with sdpa_kernel(SDPBackend.MATH):  # as without values: torch does not count what goes on in fused kernels
            real_operations, real_kept = count(real, filled)
        assert operations == real_operations > 1e6
        assert kept == pytest.approx(real_kept, rel=0.05) and kept > 1e5
        assert count(shadow, dummy_batch(shadow, task, 6))[0] == pytest.approx(2 * operations, rel=0.1)


def inputs(batch: TaskBatch):
    return batch.image, batch.input_ids, batch.attention_mask


def test_the_estimate_follows_its_formula_and_the_foundation_stays_whole(vilt: str) -> None:
    config = example_federation(vilt)
    whole = foundation_info(config, config.tasks_named(config.tasks))
    one = foundation_info(config, config.tasks_named(["text_class"]))
    estimate, fixed = whole["estimate"], 4 * (whole["frozen_parameters"] + 8 * whole["trainable_parameters"])
    assert estimate["memory_bytes"] > fixed and estimate["text_tokens"] == 32
    assert estimate["examples"] == dict.fromkeys(("answer", "image", "image_class", "text_class"), 8)
    assert one["estimate"]["examples"] == {"text_class": 32}
    assert estimate["seconds_per_step"] == pytest.approx(estimate["operations"] / estimate["operations_per_second"])
    assert one["trainable_parameters"] < whole["trainable_parameters"]
    assert all(not p.is_meta for e in load_foundation(vilt).encoders.values() for p in e.parameters())


def test_the_tasks_are_those_of_a_federation(mini_config, mini_foundation: Path, tmp_path: Path) -> None:
    federation = tmp_path / "federation.toml"
    federation.write_text(
        'name = "small"\nfoundation = "elsewhere"\n[training]\nbatch_size = 5\ntext_length = 16\n'
        '[tasks.tint]\nkind = "image_classification"\ninputs = ["image"]\nclasses = ["a", "b"]\n'
        '[tasks.ask]\nkind = "text_generation"\ninputs = ["image", "text"]\n'
    )
    shown = run(mini_foundation, "--federation", federation, "--tasks", "ask").stdout
    assert "a step, estimated, of 5 ask and texts of 16 tokens:" in shown
    assert "family          flava" in shown and "decoder/ask" in shown and "decoder/tint" not in shown
    assert re.search(
        r"  [\d.]+ s on this machine \([\d.]+ billion operations, [\d.]+ billion a second: measured", shown
    )
    assert re.search(r"trainable +\d+\.\d\d million \(\d+\.\d% of all\)", shown)
    assert "decoder/tint" in run(mini_foundation, "--federation", federation).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tasks", "nothing"],
            "are answer, image, image_class, text_class; for a federation's own give --federation",
        ),
        (["--tasks", ""], "--tasks names no task; give names with commas between"),
        (["--tasks", ",,"], "--tasks names no task; give names with commas between"),
        (["--federation", "absent.toml"], "absent.toml: no such file"),
    ],
)
def test_mistakes_are_one_line(mini_foundation: Path, arguments: list[str], said: str) -> None:
    result = run(mini_foundation, *arguments)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and said in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [(187.4, "190"), (1234.5, "1200"), (2e7, "20000000"), (0.0537, "0.054"), (0.000412, "0.00041"), (3.0, "3")],
)
def test_estimates_are_shown_without_an_exponent(value: float, shown: str) -> None:
    assert rounded(value) == shown


def test_it_has_help_with_an_example() -> None:
    assert "Example: tap foundation info " in run("--help").output
