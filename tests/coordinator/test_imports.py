"""The coordinator's host needs no training library: in a fresh interpreter, no module of the package loads one."""

import json
import pkgutil
import subprocess
import sys

import pytest

import coordinator

MODULES = sorted(m.name for m in pkgutil.iter_modules(coordinator.__path__, "coordinator.") if not m.ispkg)


@pytest.mark.parametrize("modules", [["coordinator"], MODULES], ids=["package", "every-module"])
def test_no_training_library_is_loaded(modules):
    program = (
        "import importlib, json, sys\n"
        f"[importlib.import_module(name) for name in {modules!r}]\n"
        "print(json.dumps(sorted(set(sys.modules) & {'torch', 'transformers', 'peft', 'coordinator'})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["coordinator"]
    assert len(MODULES) > 20
