"""Pictures from the outside world, as 8-bit RGB: paths, uploads, PIL images and arrays."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.kernels.gpu.arrays import DeviceArray, DevicePointer, accept, gpu_of
from vitcx.kernels.gpu.device import Gpu
from vitcx.runtime.device_errors import device_errors
from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.decoders import Sharing, decode_apart
from vitcx.runtime.pictures.decoding import MAX_PIXELS, as_rgb, decode_file
from vitcx.runtime.plain_files import open_plain

# Of a file that is decoded apart: the largest picture, of four 16-bit colours, uncompressed.
MOST_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class EncodedPicture:
    """A picture file that is not a file on disk: an upload, or a member of a tar archive.

    Attributes
    ----------
    name : what errors call it.
    read : gives the file's bytes when its turn comes.
    max_pixels : more are refused before they are decoded.
    seconds : decoding it may take that long, in a process of its own that is killed then; None
        decodes in this process: only for files that are no stranger's.
    """

    name: str
    read: Callable[[], bytes]
    max_pixels: int = MAX_PIXELS
    seconds: float | None = None

    def decode(self, sharing: Sharing | None = None) -> DecodedPicture:
        """Read and decode it; `sharing` as for `decode_apart`."""
        name, data = f"'{self.name}'", self.read()
        if self.seconds is None:
            image = decode_file(io.BytesIO(data), name, self.max_pixels)
        else:
            image = decode_apart(data, name, self.max_pixels, self.seconds, sharing)
        return DecodedPicture(self.name, image)


@dataclass(frozen=True)
class DecodedPicture:
    """An 8-bit RGB image, decoded before its turn, under the name that it was given."""

    name: str
    image: Image.Image


def read_picture(
    source: str | Path | EncodedPicture | DecodedPicture | Image.Image,
) -> Image.Image:
    """An 8-bit RGB PIL image of a file or of another PIL image.

    Raises
    ------
    InputError
        If the file is missing, not a picture, truncated, or of more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return as_rgb(source, "the picture", MAX_PIXELS)
    if isinstance(source, EncodedPicture):
        source = source.decode()
    if isinstance(source, DecodedPicture):
        return source.image
    with _open(source) as file:
        return decode_file(file, f"'{source}'", MAX_PIXELS)


def picture_file(path: Path, seconds: float) -> EncodedPicture:
    """A picture file, decoded in a process of its own for at most `seconds`."""
    return EncodedPicture(str(path), partial(_bytes_of, path), seconds=seconds)


def _bytes_of(path: Path) -> bytes:
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_FILE_BYTES:
            raise InputError(f"'{path}' has more than {MOST_FILE_BYTES >> 20} MiB: make it smaller")
        return file.read()


def _open(path: str | Path) -> BinaryIO:
    try:
        return open_plain(path)
    except FileNotFoundError:
        raise InputError(f"no picture at '{path}'") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror or error})") from None


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


def name_of(source: Any) -> str | None:
    """The path or name that a picture is given by; None for one that has none."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, ArrayFile):
        return str(source.path)
    return source.name if isinstance(source, EncodedPicture | DecodedPicture) else None


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
    return as_rgb(Image.fromarray(np.ascontiguousarray(array)), "the picture", MAX_PIXELS)
