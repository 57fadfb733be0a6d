"""What others can see: modes of files, paths of the operator, and settings that nest without end."""

import asyncio
import stat
from pathlib import Path

import pytest

from coordinator.privacy import keep_private
from tap_core.errors import UsageError
from tap_core.manifest import load_manifest, without_path

IMAGES = {"kinds": 10}
ONE_ROUND = {"total": 1, "clients_per_round": 1, "min_devices": 1}


def loose(directory):
    return [
        str(path)
        for path in [directory, *directory.rglob("*")]
        if stat.S_IMODE(path.lstat().st_mode) != (0o700 if path.is_dir() else 0o600)
    ]


def open_to_all(directory):
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_everything_under_the_directory_is_private_after_any_command(federation, command, enroll, served):
    directory, manifest = federation(**ONE_ROUND)
    open_to_all(directory)
    command("enroll", "other", directory)
    assert loose(directory) == []
    device = enroll(directory, manifest, "one", IMAGES)
    open_to_all(directory)
    service = served(directory)
    assert asyncio.run(device.take_part(service.url)).code == "done"
    service.log.chmod(0o600)
    assert loose(directory) == []
    service.terminate()


def test_links_are_not_followed(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "file").write_text("x")
    (outside / "file").chmod(0o644)
    outside.chmod(0o755)
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "file")
    keep_private(inside)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755 and stat.S_IMODE((outside / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("source", ["/srv/models/flava", "./flava", "~/flava", "a/b/c", "C:\\models"])
def test_a_path_of_an_old_manifest_is_not_shown_to_devices(federation, enroll, running, source):
    directory, manifest = federation()
    manifest = manifest.model_copy(update={"config": manifest.config.model_copy(update={"foundation": source})})
    manifest.save(directory)
    loaded = load_manifest(directory)
    assert loaded.config.foundation == f"sha256:{manifest.foundation_digest}"
    device = enroll(directory, loaded, "one", IMAGES)

    async def main():
        async with running(directory, loaded) as service:
            welcome = await device.connect(service.url, device.hello(tasks={}))
            assert source not in welcome.settings and "sha256:" in welcome.settings
            refused = await device.connect(service.url, device.hello(foundation="0" * 64))
            assert source not in refused.why + refused.fix

    asyncio.run(main())


@pytest.mark.parametrize("source", ["facebook/flava-full", "tiny"])
def test_a_hub_id_stays(federation, source):
    _, manifest = federation()
    config = manifest.config.model_copy(update={"foundation": source})
    assert without_path(config, "f" * 64).foundation == source


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_a_manifest_that_nests_without_end_is_one_line(federation, command, bracket):
    directory, _ = federation()
    (directory / "manifest.json").write_text(bracket * 100_000)
    with pytest.raises(UsageError, match="not valid JSON"):
        load_manifest(directory)
    done = command("serve", directory, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_paths_are_recognised_by_what_is_there(tmp_path, federation, monkeypatch):
    _, manifest = federation()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    config = manifest.config.model_copy(update={"foundation": "models"})
    assert Path("models").is_dir() and without_path(config, "f" * 64).foundation == "sha256:" + "f" * 64
