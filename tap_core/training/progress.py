"""How training says how far it is. It knows no torch, so that what only watches need not load it."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with a phase's name, the steps done and their number; what it raises ends the work."""
