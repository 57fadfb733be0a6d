"""The protocol and the method's core do not know each other, and must mean the same by a wire dtype."""

from typing import get_args

from protocol.tensors import DTYPES
from tap_core.algorithms.base import WIRE_DTYPES
from tap_core.settings.federation import WireDtype


def test_both_sides_have_the_same_wire_dtypes() -> None:
    assert WIRE_DTYPES == DTYPES
    assert list(get_args(WireDtype)) == list(DTYPES)
