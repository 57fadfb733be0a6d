"""Where a foundation's files are and what they are worth: found by hub id or directory, checked, digested. No torch.

It knows file names, which families there are, and that a foundation of two towers names two further directories. It
does not open weights: a device says which weights it holds long before it has imported anything heavy.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tap_core.errors import UsageError, quoted

_SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)
DUAL = "dual"
TOWERS: dict[str, tuple[str, ...]] = {"vision": (), "text": ("tokenizer.json",)}
"""The keys of a dual directory's config.json, and the files that a tower must have beside config.json and weights."""


def find_foundation(source: str) -> Path:
    """The local directory of a foundation.

    Args:
        source: A directory or a hub id (``owner/name``).

    Returns:
        The directory itself, or the snapshot of the hub id, downloaded if need be.

    Raises:
        UsageError: There is no such directory, the hub id cannot be had, config.json is broken or of no known family,
            or weights or files are missing.
    """
    directory = _find(source)
    if family_of(directory) == DUAL:
        find_towers(directory)
    else:
        _require(directory, ("tokenizer.json",))
    return directory


def family_of(directory: Path) -> str:
    """The name in `FOUNDATIONS` of the family that a directory is of. Raises UsageError if it is of none."""
    from tap_core.foundations import FOUNDATIONS  # not above: the registry's file imports this one

    family = _settings(directory).get("model_type")
    if not isinstance(family, str) or family not in FOUNDATIONS:
        raise UsageError(
            f"{directory}/config.json has model_type {quoted(family)}; one of {', '.join(FOUNDATIONS)} is needed: take "
            "another model, see docs/foundations.md"
        )
    return family


def find_towers(directory: Path) -> dict[str, Path]:
    """The directories of a dual foundation's towers, by the keys of `TOWERS`.

    Its config.json names each by a directory, relative to it, or by a hub id; where it names none, it is the
    sub-directory of the key's name. Raises UsageError as `find_foundation`.
    """
    settings, towers = _settings(directory), {}
    if unknown := set(settings) - {"model_type", "image_size", *TOWERS}:
        raise UsageError(
            f"{directory}/config.json: unknown key {min(unknown)!r}; known are vision, text and image_size"
        )
    for tower, needed in TOWERS.items():
        source = settings.get(tower, tower)
        if not isinstance(source, str) or not source:
            raise UsageError(f"{directory}/config.json: {tower} is a directory or a hub id, not {source!r}")
        beside = directory / Path(source).expanduser()
        is_path = beside.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1
        towers[tower] = _find(str(beside) if is_path else source)
        _settings(towers[tower])
        _require(towers[tower], needed)
    return towers


def foundation_digest(source: str) -> str:
    """sha256 over all that decides what the frozen model sees and says: weights, configuration, words and pixels.

    Args:
        source: A directory or a hub id.

    Returns:
        The digest in hexadecimal. The files are taken in order of their names: equal files, equal digest. Of two towers
        it does not matter where they lie.

    Raises:
        UsageError: As `find_foundation`.
    """
    directory = find_foundation(source)
    digest = hashlib.sha256()
    if family_of(directory) != DUAL:
        _digest_files(directory, digest)
        return digest.hexdigest()
    settings = {key: value for key, value in sorted(_settings(directory).items()) if key not in TOWERS}
    digest.update(json.dumps(settings).encode())
    for tower, tower_directory in find_towers(directory).items():
        digest.update(b"\0" + tower.encode() + b"\0")
        _digest_files(tower_directory, digest)
    return digest.hexdigest()


def _digest_files(directory: Path, digest: "hashlib._Hash") -> None:
    read = [path for name in _SETTINGS if (path := directory / name).is_file()]
    for path in sorted([*read, *_weight_files(directory)], key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)


def _settings(directory: Path) -> dict[str, Any]:
    """config.json. It is read before weights are looked for: those of another model are none to look for."""
    _require_file(directory, "config.json")
    return load_json(directory / "config.json")


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UsageError if the file holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(values, dict):
        raise damaged(path, "no JSON object")
    return values


def damaged(path: Path, error: object) -> UsageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"{path} cannot be loaded ({reason}); fetch the model's files again")


def _find(source: str) -> Path:
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise UsageError(f"foundation {source!r} is a file; give its directory, or a hub id (owner/name)")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"foundation {source!r}: no such directory; give a directory or a hub id (owner/name)")
    return _download(source)


def _require(directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        _require_file(directory, name)
    if not _weight_files(directory):
        raise UsageError(f"{directory} holds no weights; put the model's model.safetensors there")


def _require_file(directory: Path, name: str) -> None:
    if not (directory / name).is_file():
        raise UsageError(f"{directory} holds no {name}; put the model's {name} there")


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "vocab.txt", "merges.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"foundation {hub_id!r} is no directory and cannot be had from the hub ({reason}); "
            "give a local directory or check the name and the network"
        ) from None
