"""The benchmark of local training runs: small sizes give figures that hang together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("family", "device", "memory"), [("flava", "image", True), ("vilt", "vqa", False)])
def test_a_quick_run(tmp_path: Path, family: str, device: str, memory: bool) -> None:
    figures = tmp_path / "figures.json"
    program = str(ROOT / "benchmarks" / "local_training.py")
    options = ["--quick", "--family", family, "--device", device, "--steps", "1", "--batch", "2", "--threads", "1"]
    command = [sys.executable, program, *options, "--json", str(figures), *([] if memory else ["--no-memory"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(figures.read_text())
    assert result["device"] == device and set(result["steps"]) == {"federated", "personal", "distilled"}
    assert result["gigaflops"] > 0 and 0 < result["floor"] < min(result["steps"].values())
    if memory:
        assert result["peak"] > result["update_bytes"] > 0 and result["peft_peak"] > 0
        assert 1.0 <= result["peak_second_set"] < 1.5
    assert len(done.stdout.splitlines()) == 1 + 3
