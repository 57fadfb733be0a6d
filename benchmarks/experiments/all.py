"""Runs the experiments, one process a core, and prints their tables.

    python benchmarks/experiments/all.py                 the whole, some hours; what is there already is not run again
    python benchmarks/experiments/all.py --quick         a condition of minutes, to see that everything runs
    python benchmarks/experiments/all.py --condition limited-0.5 --seed 1 --seed 2

A run that was cut off goes on where it was: a condition and seed is done when its file holds all its algorithms. It
knows which runs there are; it does not know what they compute (`run`) or how they are compared (`report`).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.plan import CONDITIONS, MAIN, SEEDS
from experiments.run import RESULTS

HERE = Path(__file__).resolve().parent
QUICK = Path("build") / "experiments-quick"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--condition", action="append", choices=CONDITIONS, help="may be given again; the main ones by default"
    )
    parser.add_argument("--seed", action="append", type=int, help="may be given again")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    conditions = ["quick"] if options.quick else options.condition or list(MAIN)
    seeds = options.seed or ([1] if options.quick else list(SEEDS))
    out = options.out or (QUICK if options.quick else RESULTS)

    def one(seed: int, condition: str) -> int:
        began = time.monotonic()
        command = [sys.executable, str(HERE / "run.py"), "--condition", condition, "--seed", str(seed)]
        ended = subprocess.run([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, check=False)
        said = "done" if ended.returncode == 0 else f"failed ({(ended.stderr.splitlines() or ['no word'])[-1]})"
        print(f"{condition}, seed {seed}: {said} after {time.monotonic() - began:.0f} s", flush=True)
        return ended.returncode

    with ThreadPoolExecutor(options.processes) as pool:
        codes = list(pool.map(lambda pair: one(*pair), product(seeds, conditions)))
    report = subprocess.run([sys.executable, str(HERE / "report.py"), *conditions, "--results", str(out)], check=False)
    return 1 if any(codes) or report.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
