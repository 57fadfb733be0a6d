"""federation.toml: what is refused, and in which words."""

from pathlib import Path

import pytest

from tap_core.errors import UsageError
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml, validate

GOOD = """
name = "f"
foundation = "foundation"
[tasks.label]
kind = "image_classification"
inputs = ["image"]
classes = ["a", "b"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "federation.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_authors(tmp_path: Path) -> None:
    config = load_toml(write(tmp_path, GOOD), FederationConfig)
    assert config.tasks["label"].name == "label"
    assert (config.lora.encoder.rank, config.lora.attention.alpha, config.lora.dropout) == (8, 32, 0.3)
    assert config.algorithm.margins.of("text_generation") == 0.01 and config.algorithm.shared_replacement == "all"
    assert config.rounds.total == 200 and config.algorithm.distillation.steps == 50 and config.rounds.min_cohort == 2


def test_a_round_of_one_device_takes_a_cohort_of_one(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "[rounds]\nclients_per_round = 1\nmin_cohort = 1")
    assert load_toml(path, FederationConfig).rounds.clients_per_round == 1


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("[training]\nlearning_rat = 1", "unknown key 'training.learning_rat'; did you mean 'learning_rate'?"),
        ("inptus = 1", "unknown key 'tasks.label.inptus'; did you mean 'inputs'?"),
        (
            "[training]\nwarmup_rounds = -1",
            "training.warmup_rounds: is a number of rounds, 0 or more, or 'auto' (got -1)",
        ),
        ('[training]\nwarmup_rounds = "none"', "0 or more, or 'auto' (got \"none\")"),
        ('[training]\nshares = "even"', "training.shares: Input should be 'proportional' or 'equal'"),
        ("[rounds]\ntotal = 0", "rounds.total: Input should be greater than or equal to 1 (got 0)"),
        ("[rounds]\nmin_updates = 9", "'min_updates' exceeds 'clients_per_round'"),
        ("[rounds]\nmin_cohort = 3", "'min_cohort' exceeds 'clients_per_round'"),
        ("[rounds]\nclients_per_round = 1", "or set min_cohort = 1"),
        ("[rounds]\ndeadline = inf", "rounds.deadline: Input should be a finite number"),
        ("[rounds]\ndeadline = 1e10", "rounds.deadline: Input should be less than or equal to 100000000"),
        ("[algorithm.margins]\ntext_generation = inf", "algorithm: margins.text_generation: Input should be a finite"),
        ("[algorithm]\nmargns = 1", "algorithm: unknown key 'margns'; did you mean 'margins'?"),
        ('[algorithm]\nname = "tab"', "algorithm: no algorithm 'tab'; did you mean 'tap'?"),
        ("[distillation]\nsteps = 1", "table [distillation] is [algorithm.distillation] now; rename it"),
        ('[tasks.x]\nkind = "text_classification"\ninputs = ["text"]', "needs 'classes' with two names or more"),
        ('[tasks.x]\nkind = "image_generation"\ninputs = ["image"]\nclasses=["a","b"]', "takes no 'classes'"),
        ('[tasks.x]\nkind = "image_classification"\ninputs = ["text"]\nclasses=["a","b"]', "needs 'image' among"),
        ('[tasks.x]\nkind = "image_generation"', "key 'tasks.x.inputs' is missing; add it"),
        ("[rounds]\nmin_cohort = true", "rounds.min_cohort: takes neither true nor false; docs/settings.md"),
        ("[training]\nlearning_rate = true", "training.learning_rate: takes neither true nor false"),
        ("[lora]\nencoder_layers = false", "lora.encoder_layers: takes neither true nor false"),
        ("[algorithm]\nk = true", "algorithm: k: takes neither true nor false"),
        ("[algorithm.margins]\nregression = true", "algorithm: margins.regression: "),
        ("[algorithm.margins]\nregresion = 1", "no task kind 'regresion'; did you mean 'regression'?"),
        *(
            (f'[tasks.x]\nkind = "multilabel"\ninputs = ["text"]\nclasses=["a", "{name}"]', f"the class '{name}'")
            for name in ("a;b", " x", "x ", " ", "")
        ),
        ("[runtime]\nthreads = 1", "table [runtime] is each device's own; move it to client.toml"),
        ('[tasks."A b"]\nkind = "regression"\ninputs = ["text"]', "tasks.A b: is a name of lower-case letters, digits"),
        ('[tasks.x]\nkind = "regression"\ninputs = []', "tasks.x.inputs: must not be empty"),
        ('[tasks.x]\nkind = "regression"\ninputs = "text"', "tasks.x.inputs: must be a list, as in"),
        ("[rounds]\ntotal = 1.5", "rounds.total: must be a whole number (got 1.5)"),
        ('[rounds]\ntotal = "many"', 'rounds.total: must be a whole number (got "many")'),
        ('[rounds]\ntrim = "much"', 'rounds.trim: must be a number (got "much")'),
        ("[rounds]\nsampler = 1", "rounds.sampler: must be text in quotes (got 1)"),
        ("[lora", "is not valid TOML"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tmp_path: Path, addition: str, said: str) -> None:
    path = write(tmp_path, GOOD + addition)
    with pytest.raises(UsageError) as caught:
        load_toml(path, FederationConfig)
    message = str(caught.value)
    assert said in message and message.startswith(str(path)) and "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("written", "meant"), [("5", "5"), ("5.0", "5.0"), ("1e-9", "1e-09"), ('"2.5x"', "2.5x"), ('"none"', "none")]
)
def test_a_limit_of_norms_is_a_number_a_factor_or_none(tmp_path: Path, written: str, meant: str) -> None:
    config = load_toml(write(tmp_path, f"{GOOD}[rounds]\nmax_update_norm = {written}"), FederationConfig)
    assert config.rounds.max_update_norm == meant
    assert FederationConfig.model_validate_json(config.model_dump_json()) == config


def test_an_indicator_that_no_decision_asks_is_refused(tmp_path: Path) -> None:
    table = '[algorithm]\nindicator = "gradient"\n'
    with pytest.raises(
        UsageError, match="algorithm: 'indicator' 'gradient' is never asked by 'decision' 'fixed'; set decision"
    ):
        load_toml(write(tmp_path, GOOD + table), FederationConfig)
    assert load_toml(write(tmp_path, GOOD + table + 'decision = "paired"\n'), FederationConfig).cuts_decision_set


def test_selection_by_components_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="algorithm: 'selection_by' 'gradient' scores components, not examples; name another"
    ):
        load_toml(write(tmp_path, GOOD + '[algorithm]\nselection_by = "gradient"'), FederationConfig)


def test_a_value_stands_once_in_what_is_said_of_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_toml(write(tmp_path, GOOD + '[rounds]\nsampler = "unform"'), FederationConfig)
    assert str(caught.value).count("unform") == 1 and "did you mean 'uniform'?" in str(caught.value)
    with pytest.raises(UsageError, match=r'^x: name: is a name of lower-case letters.* \(got "My Home"\)$') as caught:
        validate({"name": "My Home"}, FederationConfig, source="x")


def test_whole_numbers_may_stand_where_others_may(tmp_path: Path) -> None:
    text = "[training]\nlearning_rate = 1\n[algorithm]\nselection = true\n[algorithm.margins]\nregression = 2"
    config = load_toml(write(tmp_path, GOOD + text), FederationConfig)
    assert (config.training.learning_rate, config.algorithm.margins.of("regression")) == (1.0, 2.0)
    assert config.algorithm.selection is True


@pytest.mark.parametrize("written", ['"ten"', "0", '"0x"', "-1", "inf", '"nan"', "true", '"5 x"', '"1e999"', '"5x\\n"'])
def test_another_limit_of_norms_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(UsageError, match=r"rounds\.max_update_norm: "):
        load_toml(write(tmp_path, f"{GOOD}[rounds]\nmax_update_norm = {written}"), FederationConfig)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: no such file"):
        load_toml(tmp_path / "nowhere.toml", FederationConfig)


def test_a_task_that_the_federation_lacks_is_named(tmp_path: Path) -> None:
    config = load_toml(write(tmp_path, GOOD), FederationConfig)
    with pytest.raises(UsageError, match="has no task 'labels'; its tasks are label"):
        config.tasks_named(["labels"])


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{b = " * 100_000, "[" * 100_000])
def test_a_file_that_nests_without_end_is_one_line(tmp_path, text):
    path = tmp_path / "federation.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not valid TOML") as error:
        load_toml(path, FederationConfig)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
