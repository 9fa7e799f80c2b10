"""Every kind of picture gives the right pixels, or one clear line."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.kernels.gpu import fake_cuda
from vitcx.kernels.gpu import arrays
from vitcx.kernels.gpu.arrays import DevicePointer
from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.pictures import reading as pictures
from vitcx.runtime.pictures.reading import (
    ArrayFile,
    EncodedPicture,
    as_host_array,
    from_uint8_array,
    is_array_like,
    read_picture,
)

# Red, green / blue, white: every corner different, so that a rotation or flip shows.
CORNERS = (
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    .repeat(8, axis=0)
    .repeat(8, axis=1)
)


@pytest.fixture
def core(monkeypatch):
    return fake_cuda.install(monkeypatch, shim=None)  # no kernel is launched


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"corners.{suffix}"
    Image.fromarray(CORNERS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(np.asarray(read_picture(path)), CORNERS)
    np.testing.assert_array_equal(np.asarray(read_picture(str(path))), CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # stored so that turning it by 270 degrees sets it upright
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(CORNERS)
    stored = image.transpose(turn[orientation]) if orientation in turn else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_picture(path)), CORNERS)


def test_grey_palette_and_one_bit_become_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(read_picture(Image.fromarray(grey))), expected)
    palette = Image.fromarray(CORNERS).quantize(4, dither=Image.Dither.NONE)
    np.testing.assert_allclose(np.asarray(read_picture(palette)), CORNERS, atol=1)
    one_bit = Image.fromarray(grey > 31)
    assert set(np.unique(np.asarray(read_picture(one_bit)))) == {0, 255}


def test_cmyk_becomes_rgb(tmp_path):
    path = tmp_path / "print.jpg"
    Image.fromarray(CORNERS).convert("CMYK").save(path, quality=100, subsampling=0)
    np.testing.assert_allclose(np.asarray(read_picture(path)), CORNERS, atol=3)


def test_transparency_lies_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (0, 0, 0, 0)
    rgba[1, 0] = (255, 0, 0, 128)
    rgb = np.asarray(read_picture(Image.fromarray(rgba)))
    np.testing.assert_array_equal(rgb[0], [[10, 20, 30], [255, 255, 255]])
    np.testing.assert_allclose(rgb[1, 0], (255, 127, 127), atol=1)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16).repeat(4, axis=0)
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(np.asarray(read_picture(path))[0, :, 1], [0, 1, 128, 255])


def test_pixels_without_a_range_are_refused():
    with pytest.raises(InputError, match="no defined range"):
        read_picture(Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(InputError, match="no defined range"):
        read_picture(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_files_that_cannot_be_read(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(whole.read_bytes()[:800])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, words in (
        (truncated, "damaged or truncated"),
        (text, "not a picture"),
        (empty, "not a picture"),
        (tmp_path, "is a folder"),
        (tmp_path / "missing.png", "no picture at"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_picture(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch, factor):
    path = tmp_path / "huge.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    limit = 1600 // factor - 1  # Pillow itself warns at its limit and raises at twice that
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="pixels: make it smaller"):
        read_picture(path)


def test_arrays():
    np.testing.assert_array_equal(np.asarray(from_uint8_array(CORNERS)), CORNERS)
    for wrong in (CORNERS[..., 0], CORNERS.astype(np.int32), CORNERS[:0], CORNERS[..., :2]):
        with pytest.raises(InputError, match="uint8"):
            from_uint8_array(wrong)


def test_a_torch_tensor_is_read_without_a_copy():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3, 4, 4)
    view = as_host_array(tensor)
    tensor += 1
    assert (view == 1).all()
    with pytest.raises(InputError, match="detached"):
        as_host_array(tensor.requires_grad_())


def on_device(array, **changes):
    """Somebody's device array: its interface alone, over host memory."""
    interface = {
        "shape": array.shape,
        "typestr": array.dtype.str,
        "data": (array.ctypes.data, False),
        "strides": None,
        "version": 3,
        "stream": 0x88,
        **changes,
    }
    return SimpleNamespace(__cuda_array_interface__=interface)


def test_a_device_array_is_copied_behind_its_producer(core):
    array = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    lender = on_device(array)
    assert is_array_like(lender)
    copy = as_host_array(lender)
    np.testing.assert_array_equal(copy, array)
    array[...] = 0
    assert copy.any()
    pointer = DevicePointer(copy.ctypes.data, copy.shape)
    assert is_array_like(pointer)
    np.testing.assert_array_equal(as_host_array(pointer), copy)
    (stream,) = [s for s in core.streams if s.waits]
    assert stream.waits == [0x88]
    assert stream.is_closed
    assert fake_cuda.Buffer.live == 0


def test_a_device_array_is_taken_once_behind_the_stream_that_copies_it(core, monkeypatch):
    """Some can be taken only once: where it is, it says without."""
    array = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    taken = []

    class View:
        @staticmethod
        def from_dlpack(obj, stream_ptr=None):
            taken.append(stream_ptr)
            return SimpleNamespace(
                ptr=array.ctypes.data, shape=array.shape, strides=(16, 4, 1), dtype=array.dtype
            )

    utils = SimpleNamespace(StridedMemoryView=View)
    monkeypatch.setattr(
        arrays, "cuda_module", lambda name="cuda.core": utils if "utils" in name else core
    )
    lender = SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=None)
    np.testing.assert_array_equal(as_host_array(lender), array)
    (stream,) = core.streams
    assert taken == [stream.handle]


def test_a_device_array_that_cannot_be_taken_is_an_input_error(core):
    array = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(InputError, match="C order: make it contiguous"):
        as_host_array(on_device(array, strides=(4, 16, 64)))
    elsewhere = SimpleNamespace(__dlpack_device__=lambda: (4, 0), __dlpack__=None)
    with pytest.raises(InputError, match="device type 4"):
        as_host_array(elsewhere)


def test_a_device_that_does_not_answer_is_no_input_error(core, monkeypatch):
    def broken(self, *arguments, **options):
        raise fake_cuda.FakeDriverError("CUDA_ERROR_UNKNOWN")

    monkeypatch.setattr(fake_cuda.Buffer, "copy_from", broken)
    with pytest.raises(EngineError, match="from GPU 0 failed: CUDA_ERROR_UNKNOWN"):
        as_host_array(on_device(np.zeros((3, 4, 4), np.float32)))


def test_array_files(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3, 2, 2), np.float32))
    np.testing.assert_array_equal(ArrayFile(path).read(), np.ones((3, 2, 2)))
    np.save(path, np.array([{"pickled": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a \.npy array"):
        ArrayFile(path).read()
    path.write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(InputError, match=r"not a \.npy array"):
        ArrayFile(path).read()
    with pytest.raises(InputError, match="no array file"):
        ArrayFile(tmp_path / "missing.npy").read()


def test_postscript_is_refused_and_never_run(tmp_path, monkeypatch):
    def run(*given, **named):
        raise AssertionError("Ghostscript was asked for")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, "eps")
    for source in (path, EncodedPicture("a.jpg", path.read_bytes)):
        with pytest.raises(InputError, match="PostScript"):
            read_picture(source)
