"""What a machine lacks or is slow at is refused in one line; precision is measured only where it is asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edge_client import doctor, trainer
from edge_client.config import load_client_config
from tap_core.errors import UsageError
from tap_core.settings.federation import FederationConfig
from tap_core.settings.runtime import Runtime
from tap_core.training import runtime as module
from tap_core.training.runtime import bf16_slowdown, check_runtime, make_accelerator

BF16 = Runtime(device="cpu", precision="bf16")
CLIENT = (
    'coordinator = "ws://127.0.0.1:1"\nfederation = "f"\ndevice_id = "d"\ntoken_file = "token"\nstate_dir = "s"\n'
    'foundation = "x"\n[runtime]\ndevice = "cpu"\nprecision = "bf16"\n[tasks.colour]\ntrain = "train.csv"\n'
)


@pytest.fixture
def slowdown(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[float]]:
    """Say what is measured; the list that is returned grows by each measurement."""

    def inject(times: float) -> list[float]:
        measured: list[float] = []

        def measure() -> float:
            measured.append(times)
            return times

        monkeypatch.setattr(module, "bf16_slowdown", measure)
        return measured

    return inject


def test_what_the_machine_lacks_is_refused_in_one_line() -> None:
    if torch.cuda.is_available():
        assert make_accelerator(Runtime(device="cuda"), 1).device.type == "cuda"
    else:
        with pytest.raises(UsageError, match='set it to "auto" or "cpu"'):
            make_accelerator(Runtime(device="cuda"), 1)
    with pytest.raises(UsageError, match='set it to "fp32" or "bf16"'):
        make_accelerator(Runtime(device="cpu", precision="fp16"), 1)


@pytest.mark.parametrize("times", [0.5, 1.0, 1.1])
def test_bf16_is_taken_where_it_is_not_slower(slowdown: Callable[[float], list[float]], times: float) -> None:
    measured = slowdown(times)
    assert make_accelerator(BF16, 1).mixed_precision == "bf16" and measured == [times]


def test_bf16_is_refused_where_it_is_slower_with_the_figure(slowdown: Callable[[float], list[float]]) -> None:
    slowdown(17.34)
    with pytest.raises(UsageError, match=r"takes 17\.3 times as long .* runtime\.force_precision = true") as caught:
        make_accelerator(BF16, 1)
    assert "\n" not in str(caught.value)


def test_nothing_is_measured_for_fp32_nor_where_bf16_is_forced(slowdown: Callable[[float], list[float]]) -> None:
    measured = slowdown(99.0)
    assert make_accelerator(Runtime(device="cpu"), 1).mixed_precision == "no"
    assert make_accelerator(BF16.model_copy(update={"force_precision": True}), 1).mixed_precision == "bf16"
    assert measured == []


def test_the_measurement_is_the_ratio_of_the_best_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {True: 3.0, False: 2.0}
    calls: list[bool] = []

    def timed(*, autocast: bool) -> float:
        calls.append(autocast)
        return seconds[autocast]

    monkeypatch.setattr(module, "_seconds", timed)
    bf16_slowdown.cache_clear()
    assert bf16_slowdown() == 1.5 and bf16_slowdown() == 1.5
    assert calls == [True, False]  # once per process
    bf16_slowdown.cache_clear()
    monkeypatch.undo()
    assert 0 < module._seconds(autocast=True) < 60


def test_the_device_is_told_before_it_joins(
    slowdown: Callable[[float], list[float]], tmp_path: Path, mini_config: Callable[[], FederationConfig]
) -> None:
    slowdown(4.0)
    path = tmp_path / "client.toml"
    path.write_text(CLIENT)
    config = load_client_config(path, {})
    finding = doctor._torch(config)
    assert not finding.ok and "takes 4.0 times as long" in finding.detail
    with pytest.raises(UsageError, match=r"takes 4\.0 times as long"):
        trainer.build_trainer(config, mini_config())
    path.write_text(CLIENT.replace("[runtime]\n", "[runtime]\nforce_precision = true\n"))
    finding = doctor._torch(load_client_config(path, {}))
    assert finding.ok and finding.detail.endswith("trains on the CPU in bf16")
    check_runtime(Runtime(device="cpu"))
