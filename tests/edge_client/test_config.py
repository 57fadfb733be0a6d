from pathlib import Path

import pytest

from edge_client.config import environment_variables, load_client_config
from tap_core.errors import UsageError

MINIMAL = """
coordinator = "ws://127.0.0.1:8710"
federation = "demo"
device_id = "kitchen"
token_file = "token"
state_dir = "state"
foundation = "models/tiny"

[tasks.animals]
train = "data/animals.csv"
columns = {image = "file", target = "label"}
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "client.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir("/")
    config = load_client_config(write(tmp_path, MINIMAL), {})
    assert config.state_dir == tmp_path / "state"
    assert config.token_file == tmp_path / "token"
    assert config.tasks["animals"].train == tmp_path / "data/animals.csv"
    assert config.foundation == str(tmp_path / "models/tiny")
    assert config.tasks["animals"].columns.image == "file" and config.tasks["animals"].columns.text == "text"


def test_a_foundation_that_is_no_directory_stays_a_hub_id(tmp_path):
    assert load_client_config(write(tmp_path, MINIMAL), {}).foundation == "models/tiny"
    missing = MINIMAL.replace('"models/tiny"', '"./models/tiny"')
    assert load_client_config(write(tmp_path, missing), {}).foundation == str(tmp_path / "models/tiny")


def test_environment_overrides_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {
        "TAP_COORDINATOR": "wss://example.org",
        "TAP_DEVICE_ID": "cellar",
        "TAP_STATE_DIR": "elsewhere",
        "TAP_RUNTIME_THREADS": "3",
        "TAP_RUNTIME_MEMORY_LIMIT_MB": "512",
        "PATH": "/bin",
    }
    config = load_client_config(write(tmp_path, MINIMAL + '\n[runtime]\nprecision = "bf16"\n'), environment)
    assert (config.coordinator, config.device_id) == ("wss://example.org", "cellar")
    assert config.state_dir == tmp_path / "elsewhere"
    assert (config.runtime.threads, config.runtime.precision, config.runtime.memory_limit_mb) == (3, "bf16", 512)


def test_environment_can_supply_what_the_file_lacks(tmp_path):
    text = MINIMAL.replace('coordinator = "ws://127.0.0.1:8710"\n', "")
    assert load_client_config(write(tmp_path, text), {"TAP_COORDINATOR": "ws://h:1"}).coordinator == "ws://h:1"


def test_every_scalar_setting_has_a_variable():
    assert environment_variables()["TAP_RUNTIME_DEVICE"] == ("runtime", "device")
    assert set(environment_variables()) >= {"TAP_FEDERATION", "TAP_TOKEN_FILE", "TAP_FOUNDATION"}
    assert "TAP_TASKS" not in environment_variables()


@pytest.mark.parametrize(
    ("change", "environment", "message"),
    [
        (("device_id", "devise_id"), {}, "unknown key 'devise_id'; did you mean 'device_id'?"),
        (("train =", "trian ="), {}, "unknown key 'tasks.animals.trian'"),
        (("[tasks.animals]", "[runtime]\nthread = 1\n[tasks.animals]"), {}, "did you mean 'threads'"),
        (("ws://127.0.0.1:8710", "http://127.0.0.1"), {}, "must be ws://HOST:PORT"),
        (("ws://127.0.0.1:8710", "ws://[::1"), {}, "must be ws://HOST:PORT"),
        (('"kitchen"', '"My Kitchen"'), {}, "device_id"),
        (('train = "data/animals.csv"', ""), {}, "give either 'train'"),
        (('train = "data/animals.csv"', 'train = "a.csv"\ndataset = "b/c"'), {}, "give either 'train'"),
        (('train = "data/animals.csv"', 'dataset = "b/c"\ntest = "a.csv"'), {}, "takes 'test_split'"),
        (('train = "data/animals.csv"', 'train = "a.csv"\ntest_split = "test"'), {}, "'test'"),
        (("[tasks.animals]", "tasks = 3\n[other]"), {}, "tasks"),
        (("", ""), {"TAP_COORDINATER": "x"}, "TAP_COORDINATER is unknown; did you mean TAP_COORDINATOR?"),
        (("", ""), {"TAP_ZZZZZZZZZZ": "x"}, "known: TAP_COORDINATOR"),
        (("", ""), {"TAP_RUNTIME_THREADS": "many"}, "with TAP_RUNTIME_THREADS: runtime.threads"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(tmp_path, change, environment, message):
    with pytest.raises(UsageError) as caught:
        load_client_config(write(tmp_path, MINIMAL.replace(*change, 1)), environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.toml: no such file"):
        load_client_config(tmp_path / "absent.toml", {})
