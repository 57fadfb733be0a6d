"""The README's walk-through, executed: its files are written and its commands run, in its order."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_federation import free_port

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [
    *re.findall(r"```toml\n# (\S+)\n(.*?)```", README, re.DOTALL),
    *re.findall(r"`(\w+\.csv)`[^`]*:\n\n```csv\n(.*?)```", README, re.DOTALL),
]
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_the_make_targets_exist() -> None:
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_linked_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).is_file() for link in links)


def test_the_walk_through_works(tmp_path: Path) -> None:
    """On free ports and the loopback address, else to the letter."""
    port = str(free_port())
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for name, text in FILES:
        (tmp_path / name).write_text(text.replace("8710", port), encoding="utf-8")
    commands = [command for command in COMMANDS if not command.startswith("make ")]
    assert {command.split()[0] for command in commands} == {"tap", "tap-coordinator", "tap-client"}
    serving: subprocess.Popen[str] | None = None
    output: dict[str, str] = {}
    try:
        for command in commands:
            shell = f"PATH={Path(sys.executable).parent}:$PATH exec {command}"
            if " serve " in command:
                shell = shell.replace("0.0.0.0", "127.0.0.1").replace("8710", f"{port} --http-port 0")
                serving = subprocess.Popen(["bash", "-c", shell], cwd=tmp_path, text=True, stderr=subprocess.DEVNULL)
                wait_until_serving(tmp_path)
                continue
            done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            output[command.split()[0] + " " + command.split()[1]] = done.stdout
        assert serving is not None and serving.wait(60) == 0  # `stop` ended it
    finally:
        if serving is not None and serving.poll() is None:
            serving.send_signal(signal.SIGKILL)
            serving.wait()
    assert {name for name, _ in FILES} == {"federation.toml", "client.toml", "tickets.csv", "tickets_test.csv"}
    assert "ticket_topic" in output["tap-client status"] and "ticket_topic" in output["tap simulate"]
    assert re.search(r"\d+\.\d%\s+(billing|technical)", output["tap-client predict"])
    assert "fail" not in output["tap-client doctor"]


def wait_until_serving(directory: Path) -> None:
    end = time.monotonic() + 60
    while not (directory / "federation" / "state" / "serving.json").exists():
        if time.monotonic() > end:
            pytest.fail("tap-coordinator serve did not listen within a minute")
        time.sleep(0.05)
