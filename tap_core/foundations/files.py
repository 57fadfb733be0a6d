"""Where a foundation's files are and what they are worth: found by hub id or directory, checked, digested. No torch.

It knows file names. It does not open weights (`foundation` does): a device says which weights it holds long before it
has imported anything heavy.
"""

import hashlib
from pathlib import Path

from tap_core.errors import UsageError

_SETTINGS = ("config.json", "tokenizer.json", "preprocessor_config.json")


def find_foundation(source: str) -> Path:
    """The local directory of a foundation: the directory itself, or the snapshot of a hub id.

    Raises UsageError if there is no such directory, if the hub id cannot be had, or if weights or files are missing.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        if directory.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UsageError(f"foundation {source!r}: no such directory; give a directory or a hub id (owner/name)")
        directory = _download(source)
    if not _weight_files(directory):
        raise UsageError(f"{directory} holds no weights; put the model's model.safetensors there")
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UsageError(f"{directory} holds no {name}; put the model's {name} there")
    return directory


def foundation_digest(source: str) -> str:
    """sha256 over all that decides what the frozen model sees and says: weights, configuration, words and pixels.

    The files are taken in order of their names; equal files, equal digest.
    """
    directory = find_foundation(source)
    digest = hashlib.sha256()
    read = [path for name in _SETTINGS if (path := directory / name).is_file()]
    for path in sorted([*read, *_weight_files(directory)], key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "vocab.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"foundation {hub_id!r} is no directory and cannot be had from the hub ({reason}); "
            "give a local directory or check the name and the network"
        ) from None
