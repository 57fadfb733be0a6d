"""How an image file becomes pixels: one way for training data and for prediction. It knows Pillow and numpy alone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError


class ImageError(Exception):
    """Why an image cannot be used and what to do, to be put after its name."""


def read_pixels(file: Path | BinaryIO) -> np.ndarray:
    """uint8 (height, width, 3). Raises ImageError if it is missing, no image, or has more than 8 bits a channel."""
    with _opened(file) as image:
        return np.asarray(image.convert("RGB"))


def check_header(file: Path | BinaryIO) -> None:
    """As `read_pixels` for the header only: fast enough to look at every image before training starts."""
    with _opened(file):
        pass


@contextlib.contextmanager
def _opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ImageError(
                    f"has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits, so that its"
                    " brightest values are not clipped"
                )
            yield image
    except FileNotFoundError:
        raise ImageError("is missing: no such image file; correct the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error).splitlines()[0]})"
        raise ImageError(f"is not a readable image{reason}; give a PNG or JPEG file") from None
