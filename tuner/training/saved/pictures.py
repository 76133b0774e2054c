"""Pictures saved by a trainer's hooks: PNG files in the folder `pictures` of a run, or of a trial's artifacts."""

from __future__ import annotations

import contextlib
import io
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import jax
import numpy as np

from tuner.errors import StudyError, how_to_install
from tuner.output.log import tell


class Pictures:
    """The pictures of a training.

    Args:
        folder: The folder of the run or trial; `pictures` is created in it with the first picture. None to save none.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).absolute() / "pictures"
        self._told = ""

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Handle calls of `save_picture` inside the body; with nested trainings the innermost handles them."""
        token = _taking.set(self)
        try:
            yield
        finally:
            _taking.reset(token)

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Write a picture (UInt8[Array, "height width 3"]) atomically; print one line on stderr if that fails."""
        if self._folder is None:
            return
        path = self._folder / f"{name}.png"
        scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            content = _png(pixels)
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(content)
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
            trouble = ""
        except ImportError:
            trouble = f"pictures need matplotlib: {how_to_install('plots')}"
        except OSError as error:
            trouble = f"cannot write pictures to {self._folder}: {error.strerror}"
        if trouble and trouble != self._told:
            tell(trouble, "picture", "warning")
        self._told = trouble


_taking: ContextVar[Pictures | None] = ContextVar("pictures", default=None)


def save_picture(name: str, pixels: np.ndarray | jax.Array) -> None:
    """Save a picture from a trainer's hook; does nothing if called anywhere else.

    The file is `pictures/NAME.png` in the folder of a trial's artifacts, or in `log` of `train_model`. It replaces a
    picture with the same name. If a picture cannot be written, one warning is printed on stderr and the trial
    continues.

    Args:
        name: Letters, digits and `_.-`, such as `samples-010`.
        pixels: Brightness, Float[Array, "height width"], or colours, Float[Array, "height width 3"], from 0 to 1; other
            values are clipped, and NaN becomes 0.

    Raises:
        StudyError: the name or the array is invalid.
    """
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,99}", name)):
        raise StudyError(f"the name of a picture must be 1 to 100 letters, digits, '_', '.' or '-': got {name!r}")
    array = np.asarray(pixels, np.float32)
    if array.ndim not in (2, 3) or array.size == 0 or array.shape[2:] not in ((), (3,)):
        raise StudyError(
            f"a picture must have the shape (height, width) or (height, width, 3): {name!r} has {array.shape}"
        )
    bytes_ = np.rint(255 * np.clip(np.nan_to_num(array), 0.0, 1.0)).astype(np.uint8)
    taking = _taking.get()
    if taking is not None:
        taking.write(name, bytes_ if bytes_.ndim == 3 else np.repeat(bytes_[..., None], 3, axis=2))


def tile(images: np.ndarray | jax.Array, columns: int) -> np.ndarray:
    """Arrange images in a grid, separated by white lines of one pixel.

    Args:
        images: Float[Array, "count height width"]; the last row is filled with ones.
        columns: Images per row.

    Returns:
        Float[Array, "rows*(height+1)-1 columns*(width+1)-1"].
    """
    images = np.asarray(images)
    count, height, width = images.shape
    rows = -(-count // columns)
    framed = np.ones((rows * columns, height + 1, width + 1), images.dtype)
    framed[:count, :height, :width] = images
    grid = framed.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
    return grid.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def _png(pixels: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return buffer.getvalue()
