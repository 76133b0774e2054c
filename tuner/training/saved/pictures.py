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
    """Where the pictures of one training go.

    Args:
        folder: The folder of the run or trial, in which `pictures` is made with the first one; None for nowhere.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).absolute() / "pictures"
        self._told = ""

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take what `save_picture` is given inside the body; of trainings inside each other the innermost does."""
        token = _taking.set(self)
        try:
            yield
        finally:
            _taking.reset(token)

    def write(self, name: str, pixels: np.ndarray) -> None:
        """Write a picture (UInt8[Array, "height width 3"]) atomically; one line on stderr if that is not possible."""
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
    """Save a picture from a trainer's hook; called anywhere else it does nothing.

    The file is `pictures/NAME.png` in the folder of a trial's artifacts, or in `log` of `train_model`; a picture of
    the same name is replaced. A disk that is full ends no trial: what cannot be written is told on stderr, once.

    Args:
        name: Letters, digits and `_.-`, such as `samples-010`.
        pixels: Brightness, Float[Array, "height width"], or colours, Float[Array, "height width 3"], from 0 to 1; what
            is beyond is clipped, NaN is 0.

    Raises:
        StudyError: the name is not a file name, or the array is not a picture.
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
    """Return images side by side, a line of one pixel at 1 between them.

    Args:
        images: Float[Array, "count height width"]; the last row is filled up with ones.
        columns: Images to a row.

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
