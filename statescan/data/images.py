"""Images as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_image(file: Path, size: int | None = None) -> np.ndarray:
    """(H, W, C) float32 in [0, 1], C = 1 of a grey image and 3 of any other; what is transparent keeps its colour.

    With ``size`` scaled to (size, size).
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading images needs pillow: pip install 'statescan[images]'") from error
    if size is not None and size < 1:
        raise ValueError(f"size must be 1 or more; got {size}")
    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            image.load()
            if image.mode.startswith("I"):  # 16 bits a pixel
                image = Image.fromarray((np.asarray(image) / 65535).astype(np.float32))
                scale = 1.0
            else:
                image, scale = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), 255.0
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            array = np.asarray(image, np.float32) / np.float32(scale)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not an image that can be read: {error}; convert it, or leave it out") from error
    return array.reshape(*array.shape[:2], -1)
