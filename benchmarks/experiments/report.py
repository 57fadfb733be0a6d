"""Compares algorithms from the lines that `run` wrote: errors relative to FedAvg's, and paired intervals.

    python benchmarks/experiments/report.py limited-0.5 limited-0.1

An algorithm's score in a condition is the mean over task kinds of its mean error, as a share of FedAvg's on the same
devices. Differences are paired: the bootstrap draws seeds, and of each drawn seed devices, and both algorithms keep
what was drawn. A difference whose interval holds zero is called none.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

DRAWS = 2000
Key = tuple[int, str]
Errors = Mapping[Key, Mapping[str, Sequence[float]]]
Table = dict[str, dict[Key, dict[str, list[float]]]]
"""By algorithm, by seed and device, by task kind: errors of the personal models."""


def load(directory: Path, condition: str) -> Table:
    """All seeds of a condition. FedAvg's errors stand under ``fedavg``, whichever algorithm's lines told them."""
    table: Table = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(directory.glob(f"{condition}-*.jsonl")):
        seed = int(path.stem.rsplit("-", 1)[1])
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            key = seed, line["device"]
            table[line["algorithm"]][key][line["kind"]].append(line["personal"])
            if line["algorithm"].startswith("tap"):
                table[f"{line['algorithm']}: stage 1"][key][line["kind"]].append(line["stage1"])
    return table


def relative(
    errors: Mapping[Key, Mapping[str, Sequence[float]]],
    base: Mapping[Key, Mapping[str, Sequence[float]]],
    keys: Sequence[Key],
) -> float:
    """Mean over kinds of the mean error over the mean error of ``base``, both on these seeds and devices."""
    shares = []
    for kind in sorted({kind for key in keys for kind in base[key]}):
        ours, theirs = (np.concatenate([of[key].get(kind, []) for key in keys]).mean() for of in (errors, base))
        shares.append(ours / theirs)
    return float(np.mean(shares))


def draws(keys: Sequence[Key], count: int = DRAWS, seed: int = 0) -> list[list[Key]]:
    """Bootstrap samples: seeds with replacement, and devices of each with replacement."""
    rng = np.random.default_rng(seed)
    by_seed: dict[int, list[Key]] = defaultdict(list)
    for key in keys:
        by_seed[key[0]].append(key)
    seeds = sorted(by_seed)
    found = []
    for _ in range(count):
        drawn: list[Key] = []
        for place in rng.integers(len(seeds), size=len(seeds)):
            devices = by_seed[seeds[place]]
            drawn += [devices[index] for index in rng.integers(len(devices), size=len(devices))]
        found.append(drawn)
    return found


def compare(table: Table, ours: str, other: str, base: str = "fedavg") -> tuple[float, float, float]:
    """The difference of the scores (ours below zero is better) and its paired interval of 95 %."""
    keys = sorted(set(table[ours]) & set(table[other]) & set(table[base]))

    def difference(some: Sequence[Key]) -> float:
        return relative(table[ours], table[base], some) - relative(table[other], table[base], some)

    low, high = np.quantile([difference(drawn) for drawn in draws(keys)], (0.025, 0.975))
    return difference(keys), float(low), float(high)


def worst_tenth(errors: Errors, base: Errors) -> float:
    """Mean of the tenth of the devices (one at the least) whose errors are the largest shares of FedAvg's mean of the
    kind."""
    of_kind: dict[str, list[float]] = defaultdict(list)
    for kinds in base.values():
        for kind, values in kinds.items():
            of_kind[kind] += values
    means = {kind: float(np.mean(values)) for kind, values in of_kind.items()}
    shares = sorted(
        (float(np.mean([value / means[kind] for kind, values in kinds.items() for value in values])))
        for kinds in errors.values()
    )
    return float(np.mean(shares[-max(1, len(shares) // 10) :]))


def by_kind(errors: Errors) -> dict[str, float]:
    """The mean error of each kind."""
    found: dict[str, list[float]] = defaultdict(list)
    for kinds in errors.values():
        for kind, values in kinds.items():
            found[kind] += values
    return {kind: float(np.mean(values)) for kind, values in sorted(found.items())}


def costs(directory: Path, condition: str) -> dict[str, tuple[float, float]]:
    """By algorithm: local steps and CPU seconds of a device beside the federated training, means over devices."""
    spent: dict[str, dict[Key, tuple[float, float]]] = defaultdict(dict)
    for path in sorted(directory.glob(f"{condition}-*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            key = int(path.stem.rsplit("-", 1)[1]), line["device"]
            spent[line["algorithm"]][key] = line.get("steps", 0), line.get("seconds", 0)
    found = {}
    for name, of in spent.items():
        steps, seconds = np.mean(list(of.values()), axis=0)
        found[name] = float(steps), float(seconds)
    return found


def rows(table: Table, spent: Mapping[str, tuple[float, float]], against: Sequence[str]) -> list[str]:
    """The table of a condition in Markdown, the best algorithm first."""
    kinds = sorted({kind for of in table["fedavg"].values() for kind in of})
    heads = ["algorithm", "error", *(f"less {other}" for other in against), "worst tenth", *kinds, "steps", "seconds"]
    found = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    scores = {}
    for name, errors in table.items():
        keys = sorted(set(errors) & set(table["fedavg"]))
        scores[name] = relative(errors, table["fedavg"], keys)
    for name in sorted(scores, key=scores.__getitem__):
        changes = [compare(table, name, other) for other in against if other in table]
        steps, seconds = spent.get(name, (0.0, 0.0))
        known = name in spent
        cells = [
            name,
            f"{scores[name]:.3f}",
            *(f"{change:+.3f} ({low:+.3f} to {high:+.3f})" for change, low, high in changes),
            f"{worst_tenth(table[name], table['fedavg']):.2f}",
            *(f"{error:.3f}" for error in by_kind(table[name]).values()),
            f"{steps:.0f}" if known else "",
            f"{seconds:.1f}" if known else "",
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="+")
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--against", action="append", help="may be given again; fedavg_finetune and local by default")
    options = parser.parse_args()
    for condition in options.conditions:
        table = load(options.results, condition)
        if "fedavg" not in table:
            raise SystemExit(f"error: {options.results} holds no lines of {condition!r}; run it with run.py or all.py")
        seeds = sorted({key[0] for key in table["fedavg"]})
        print(f"{condition}: seeds {', '.join(map(str, seeds))}\n")
        against = [name for name in options.against or ("fedavg_finetune", "local") if name in table]
        print("\n".join(rows(table, costs(options.results, condition), against)), end="\n\n")


if __name__ == "__main__":
    main()
