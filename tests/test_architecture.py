"""What a linter does not see: what an import really loads, and modules that stay small."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "tap_core", "coordinator", "edge_client", "deploy")
TRAINING_LIBRARIES = {"torch", "transformers", "peft", "accelerate", "datasets", "onnx", "onnxruntime"}
MOST_LINES = 450  # a hint that a module may hold two ideas, no law
TORCH_FREE_CORE = (
    "tap_core.aggregation",
    "tap_core.server",
    "tap_core.algorithms",
    "tap_core.algorithms.replacement",
    "tap_core.algorithms.tap",
    "tap_core.cohorts",
    "tap_core.command_line",
    "tap_core.components",
    "tap_core.errors",
    "tap_core.examples",
    "tap_core.faces",
    "tap_core.files",
    "tap_core.foundations",
    "tap_core.foundations.files",
    "tap_core.manifest",
    "tap_core.names",
    "tap_core.registry",
    "tap_core.samplers",
    "tap_core.samplers.uniform",
    "tap_core.seeds",
    "tap_core.settings.federation",
    "tap_core.settings.toml",
    "tap_core.tasks.base",
    "tap_core.training.optimizer",
    "tap_core.training.progress",
    "tap_core.triggers.fixed",
    "tap_core.triggers.loss",
)
FACES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("__init__.py")
)
"""What others import by a package's name: it may load no training library."""


def modules_of(package):
    found = (module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."))
    return [package, *(name for name in found if not name.endswith(".migrations.env"))]  # alembic runs that one


def loaded_after_importing(*modules):
    """Top-level packages in sys.modules of a fresh interpreter that has imported ``modules``."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_coordinator_loads_no_training_library():
    loaded = loaded_after_importing(*modules_of("coordinator"))
    assert "coordinator" in loaded
    assert not loaded & (TRAINING_LIBRARIES | {"edge_client", "deploy"})


def test_the_protocol_and_the_torch_free_core_load_no_training_library():
    loaded = loaded_after_importing(*modules_of("protocol"), *TORCH_FREE_CORE)
    assert {"protocol", "tap_core"} <= loaded
    assert not loaded & (TRAINING_LIBRARIES | {"coordinator", "edge_client", "deploy", "websockets"})


def test_inference_loads_no_training_library():
    loaded = loaded_after_importing("edge_client.inference")
    assert not loaded & (TRAINING_LIBRARIES - {"onnxruntime"})


@pytest.mark.parametrize("face", FACES)
def test_a_face_loads_no_training_library(face):
    assert not loaded_after_importing(face) & (TRAINING_LIBRARIES | {"websockets", "fastapi"})


def test_every_task_kind_is_known_without_torch():
    kinds = [f"tap_core.tasks.{path.stem}" for path in (ROOT / "tap_core" / "tasks").glob("*.py")]
    with_torch = {
        "tap_core.tasks.batch",
        "tap_core.tasks.decoders",
        "tap_core.tasks.generation",
        "tap_core.tasks.losses",
    }
    free = sorted(set(kinds) - with_torch - {"tap_core.tasks.__init__"})
    assert "tap_core.tasks.regression" in free
    assert not loaded_after_importing(*free) & TRAINING_LIBRARIES


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_stay_small_and_say_what_they_know(package):
    too_long, mute = [], []
    for path in sorted((ROOT / package).rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MOST_LINES:
            too_long.append(f"{name} has {len(text.splitlines())} lines")
        if path.name != "__init__.py" and not text.startswith(('"""', "#!")):
            mute.append(name)
    assert too_long == []
    assert mute == []
