"""Reading back what was written, without the project's own reader."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray


def decode(mp4: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
