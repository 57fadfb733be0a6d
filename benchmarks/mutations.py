"""What the tests would notice: the code is broken in one place at a time, and the tests named for it must fail.

The mutations are in `mutations.toml`.

    python benchmarks/mutations.py                      every mutation that has not been killed yet
    python benchmarks/mutations.py --only NAME          that one, with the tests' output (may be repeated)
    python benchmarks/mutations.py --list

Each mutation is applied to a copy of the tree in a temporary directory, never here. Results are kept in a file, so that
a run that was cut off goes on; what was killed is not tried again until its code or its tests change. It takes an hour
or so on two cores. Exit code: 0 if every mutation was killed, 1 if one survived, 2 if one cannot be tried: its old text
is gone, its tests fail without it, or pytest found none.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".toml")
COPIED = (
    "benchmarks",
    "coordinator",
    "deploy",
    "docs",
    "edge_client",
    "protocol",
    "tap_core",
    "tests",
    "pyproject.toml",
)
FAILED = 1
"""pytest's exit code when a test has failed; any other but 0 says that it could not run them."""


@dataclass(frozen=True)
class Mutation:
    """``old``, which stands once in ``file``, becomes ``new``. ``why``: what would be wrong. ``tests``: for pytest."""

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """The mutated text of the file below ``root``. Raises ValueError unless ``old`` stands in it exactly once."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the old text stands {count} times in {self.file}, not once; mend it")
        return text.replace(self.old, self.new)

    def fingerprint(self, root: Path) -> str:
        """Changes when the mutation, its file or its tests do."""
        digest = hashlib.sha256(repr(self).encode())
        for name in (self.file, *(test.partition("::")[0] for test in self.tests)):
            paths = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*.py"))
            for path in paths:
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def load(path: Path = LIST) -> list[Mutation]:
    """Every mutation of the list, each with its tests spelled out."""
    with path.open("rb") as file:
        given = tomllib.load(file)
    groups = given["tests"]
    return [
        Mutation(name, **{**table, "tests": tuple(groups[table["tests"]])})
        for name, table in given["mutations"].items()
    ]


def main() -> int:
    arguments = _arguments()
    mutations = load()
    chosen = [m for m in mutations if not arguments.only or m.name in arguments.only]
    if unknown := set(arguments.only) - {m.name for m in mutations}:
        print(f"no mutation is named {', '.join(sorted(unknown))}; --list shows them", file=sys.stderr)
        return 2
    if arguments.list:
        for m in chosen:
            print(f"{m.name:36} {m.file:40} {m.why}")
        return 0
    known = _read(arguments.results)
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        tree = Path(scratch) / "tree"
        copy_tree(tree)
        for m in chosen:
            mark = m.fingerprint(tree)
            before = known.get(m.name, {})
            if not arguments.only and before.get("outcome") == "killed" and before.get("fingerprint") == mark:
                continue
            began = time.monotonic()
            outcome, detail = attempt(m, tree, arguments.timeout, known, shows=bool(arguments.only))
            seconds = round(time.monotonic() - began, 1)
            row = {"fingerprint": mark, "outcome": outcome, "detail": detail, "seconds": seconds}
            known[m.name] = row
            _write(arguments.results, m.name, row)
            print(f"{outcome:9} {m.name:36} {seconds:6.1f} s  {detail}", flush=True)
    return _summary({m.name: known.get(m.name, {}).get("outcome", "error") for m in chosen})


def attempt(
    m: Mutation, tree: Path, timeout: float, known: dict[str, dict[str, str]], *, shows: bool
) -> tuple[str, str]:
    """(outcome, detail) of one mutation: killed, survived or error. The tree is as it was afterwards."""
    try:
        mutated = m.apply(tree)
    except ValueError as error:
        return "error", str(error)
    sound = "sound without a mutation: " + " ".join(m.tests)
    if sound not in known:
        code, detail = run_tests(m.tests, tree, timeout * 3, shows=False)
        if code != 0:
            return "error", f"the tests do not pass without it: {detail}"
        known[sound] = {}
    path = tree / m.file
    original = path.read_bytes()
    path.write_text(mutated, encoding="utf-8")
    try:
        code, detail = run_tests(m.tests, tree, timeout, shows=shows)
    finally:
        path.write_bytes(original)
    if code in (FAILED, None):
        return "killed", detail
    return ("survived", m.why) if code == 0 else ("error", f"pytest ended with {code}: {detail}")


def run_tests(tests: Sequence[str], tree: Path, timeout: float, *, shows: bool) -> tuple[int | None, str]:
    """pytest's exit code, None if it was still running at the timeout, and the first test that failed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"still running after {timeout:g} s"
    if shows:
        print(done.stdout, done.stderr)
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, (told or done.stdout.splitlines()[-1:] or [done.stderr[-200:]])[0][:160]


def copy_tree(tree: Path) -> None:
    """The product and its tests, without what was built and the demo's data."""
    tree.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_file():
            shutil.copy(source, tree / name)
        else:
            shutil.copytree(source, tree / name, ignore=_left_out)


def _left_out(directory: str, names: list[str]) -> set[str]:
    demo = Path(directory) == ROOT / "deploy" / "demo"
    return {name for name in names if name == "__pycache__" or (demo and name in ("data", "foundation"))}


def _read(path: Path) -> dict[str, dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {row.pop("name"): row for row in map(json.loads, lines)}


def _write(path: Path, name: str, row: dict[str, object]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **row}) + "\n")


def _summary(outcomes: dict[str, str]) -> int:
    def named(outcome: str) -> list[str]:
        return [name for name, given in outcomes.items() if given == outcome]

    print(f"{len(named('killed'))} killed, {len(named('survived'))} survived, {len(named('error'))} errors")
    for outcome in ("survived", "error"):
        if names := named(outcome):
            print(f"{outcome}: {', '.join(names)}")
    return 2 if named("error") else 1 if named("survived") else 0


def _arguments(given: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this mutation; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the mutations and end")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which tests count as failed (300)")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build" / "mutations.jsonl", help="where results are kept"
    )
    arguments = parser.parse_args(None if given is None else list(given))
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
