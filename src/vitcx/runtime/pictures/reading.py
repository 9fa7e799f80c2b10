"""Pictures from the outside world, as 8-bit RGB: paths, PIL images and arrays.

Right side up (EXIF), grey and palette and CMYK as RGB, 16-bit scaled to 8, transparency over white.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vitcx.kernels.gpu.arrays import DeviceArray, DevicePointer, accept, gpu_of
from vitcx.kernels.gpu.device import Gpu
from vitcx.runtime.device_errors import device_errors
from vitcx.runtime.errors import InputError

# Pillow's own limit against decompression bombs, about 89 million pixels.
MAX_PIXELS = 89_478_485
_OPEN_LOCK = threading.Lock()  # catch_warnings is not safe between threads


@dataclass(frozen=True)
class EncodedPicture:
    """A picture file that is not a file on disk: an upload, or a member of a tar archive.

    Attributes
    ----------
    name : what errors call it.
    read : gives the file's bytes when its turn comes.
    max_pixels : more are refused before they are decoded.
    """

    name: str
    read: Callable[[], bytes]
    max_pixels: int = MAX_PIXELS


def read_picture(source: str | Path | EncodedPicture | Image.Image) -> Image.Image:
    """An 8-bit RGB PIL image of a file or of another PIL image.

    Raises
    ------
    InputError
        If the file is missing, not a picture, truncated, or of more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _as_rgb(source, "the picture")
    if isinstance(source, EncodedPicture):
        return _read_file(io.BytesIO(source.read()), f"'{source.name}'", source.max_pixels)
    return _read_file(Path(source), f"'{source}'", MAX_PIXELS)


def _read_file(path: Path | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _OPEN_LOCK, warnings.catch_warnings():
            # Said below, in one line and for every size over the limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError:
        raise InputError(f"no picture at {name}") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, max_pixels)) from None
    except (OSError, ValueError, SyntaxError) as error:
        is_folder = isinstance(path, Path) and path.is_dir()
        # Pillow names a stream by its address in memory, which says nothing to anybody.
        why = f" ({error})" if isinstance(path, Path) else ""
        reason = "is a folder" if is_folder else f"is not a picture that can be read{why}"
        raise InputError(f"{name} {reason}") from None
    if image.format == "EPS":
        image.close()
        raise InputError(
            f"{name} is PostScript, a program and not a picture: save it as PNG or JPEG"
        )
    with image:
        return _as_rgb(image, name, max_pixels)


def _too_large(name: str, max_pixels: int) -> str:
    return f"{name} has more than {max_pixels:,} pixels: make it smaller first"


def _as_rgb(image: Image.Image, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(_too_large(name, max_pixels))
    if width == 0 or height == 0:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_deep_grey(image, name)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise InputError(f"{name} is damaged or truncated ({error})") from None


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey to 8-bit RGB; 32-bit and float pictures have no defined white and are refused."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{name} has {image.mode!r} pixels with no defined range: save it with 8 or 16 bits"
        )
    # Rounded to nearest: 65535 / 255 is exactly 257.
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@dataclass(frozen=True)
class ArrayFile:
    """A .npy file, read when its turn comes and never as pickle."""

    path: Path

    def read(self) -> NDArray[Any]:
        """The array, mapped from the file."""
        try:
            return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise InputError(f"no array file at '{self.path}'") from None
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"'{self.path}' is not a .npy array ({error})") from None


def is_array_like(source: Any) -> bool:
    """Whether `source` is to be read as an array: NumPy, a file of it, or on a device."""
    if isinstance(source, np.ndarray | ArrayFile | DevicePointer):
        return True
    return hasattr(source, "__dlpack__") or hasattr(source, "__cuda_array_interface__")


def as_host_array(source: Any) -> NDArray[Any]:
    """A NumPy view of an array in host memory, without a copy; of one on a GPU, a copy.

    Raises
    ------
    InputError
        If the array is not dense, or lies on a device that is no CUDA device.
    EngineError
        If the copy fails.
    """
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, ArrayFile):
        return source.read()
    with _taking(source):
        index = gpu_of(source)
        if index is None:
            array = accept(source)
            assert isinstance(array, np.ndarray)
            return array
    return _download(source, index)


@contextlib.contextmanager
def _taking(source: Any) -> Iterator[None]:
    """What an array's owner or the device layer says against taking it, as `InputError`."""
    try:
        yield
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read the {type(source).__name__} as an array ({error}): "
            "move it to host memory, detached, first"
        ) from None


def _download(source: Any, device: int) -> NDArray[Any]:
    """A copy of a device array, once what its producer has queued is done."""
    with device_errors(f"copying a {type(source).__name__} from GPU {device}"):
        gpu = Gpu(device)
        with gpu.current(), gpu.new_stream() as stream:
            with _taking(source):
                array = accept(source, stream)
            assert isinstance(array, DeviceArray)
            return gpu.download(array, stream)


def from_uint8_array(array: NDArray[Any]) -> Image.Image:
    """An RGB image of an (H,W,3) uint8 array."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"the array has shape {array.shape} and dtype {array.dtype}: give (H,W,3) uint8 RGB, "
            "or (3,H,W) float32 already normalised"
        )
    return _as_rgb(Image.fromarray(np.ascontiguousarray(array)), "the picture")
