"""The benchmark runs: a tiny case gives figures that hang together."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_tiny_case(tmp_path):
    figures = tmp_path / "figures.json"
    arguments = ["--case", "2x0.2x20", "--rounds", "2", "--json", str(figures), "--directory", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "round_overhead.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(figures.read_text())
    assert result["case"] == {"devices": 2, "megabytes": 0.2, "tensors": 20}
    assert len(result["round_seconds"]) == len(result["echo_seconds"]) == 2
    assert min(result["round_seconds"] + result["echo_seconds"]) > 0 and result["ratio"] > 0
    assert 0.9 < result["bytes_per_round"] / (2 * 2 * 200_000) < 1.2  # down and up, and little else
    assert 20 < result["coordinator_peak"] < 500
    assert done.stdout.startswith("2 devices x 0.2 MB x 20 tensors, 2 rounds")
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
