"""What `tap init` writes and the coordinator serves: the settings, the foundation's digest and every component's shape.

A federation directory holds `manifest.json` and `components/{digest}.safetensors`, version 0 of every component. This
module knows the manifest's form and does not know how tensors are encoded. No torch.
"""

import json
from pathlib import Path

from pydantic import Field

from tap_core.errors import UsageError
from tap_core.names import ComponentName
from tap_core.settings.base import Settings
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import validate

SCHEMA_VERSION = 2
"""Raised when names, shapes or meanings of components change, so that an old device is refused with a clear message."""

MANIFEST_NAME = "manifest.json"
COMPONENTS_DIRECTORY = "components"


class ComponentSpec(Settings):
    """Version 0 of a component: where its bytes are and which tensors it must hold, in every version."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the safetensors bytes.")
    size: int = Field(ge=1, description="Bytes.")
    shapes: dict[str, tuple[int, ...]] = Field(description="Shape by tensor name; the dtype is the federation's.")


class FederationManifest(Settings):
    """`manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    config: FederationConfig
    foundation_digest: str = Field(description="Digest of the frozen weights that every device must hold.")
    components: dict[ComponentName, ComponentSpec]

    def save(self, directory: Path) -> None:
        (directory / MANIFEST_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_manifest(directory: Path) -> FederationManifest:
    """Read DIR/manifest.json. Raises UsageError if it is missing or of another schema."""
    path = directory / MANIFEST_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; create it with: tap init FEDERATION.toml --out {directory}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets without end
        raise UsageError(f"{path} is not valid JSON ({error}); create it again with tap init") from None
    schema = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema != SCHEMA_VERSION:
        raise UsageError(f"{path} has schema {schema} and this version reads {SCHEMA_VERSION}; run tap init again")
    manifest = validate(values, FederationManifest, source=str(path))
    return manifest.model_copy(update={"config": without_path(manifest.config, manifest.foundation_digest)})


def without_path(config: FederationConfig, digest: str) -> FederationConfig:
    """The settings as others may see them: a foundation that is a directory becomes ``sha256:`` and its digest, because
    a path says nothing on another machine and much about this one. A hub id stays."""
    source = config.foundation
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source or Path(source).is_dir()
    return config.model_copy(update={"foundation": f"sha256:{digest}"}) if is_path else config
