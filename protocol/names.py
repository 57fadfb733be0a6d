"""Names that travel, as types of their own: no program that passes a digest where a component is meant passes mypy."""

from typing import NewType

ComponentName = NewType("ComponentName", str)
"""A component's name. What it stands for is the method's; here it is told apart from other names."""

Digest = NewType("Digest", str)
"""sha256 of a blob in hexadecimal, which is the blob's name."""
