"""Parquet shards: one row for each picture and target, in the order of the source.

What is written is a function of the rows alone: no clock, host name or random name is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.runtime.digests import replacing, sha256_of
from vitcx.runtime.errors import MissingExtraError
from vitcx.runtime.explanation import Explanation
from vitcx.sources.items import Item

# Readers of Parquet folders pass over names that begin with an underscore.
DIGESTS_NAME = "_digests"
RESOLUTIONS = ("patch", "full")
DTYPES = ("float16", "float32")


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module, or an error that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("a dataset job", "pyarrow", "dataset") from None
    return pyarrow, pyarrow.parquet


def schema(dtype: str, score_word: str) -> Any:
    """Columns of a shard; `saliency` is row by row, `saliency_height` x `saliency_width` values.

    Parameters
    ----------
    dtype : of the saliency.
    score_word : ``probability``, or ``score`` where the model's outputs are none.
    """
    pa, _ = import_pyarrow()
    element = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [
            ("index", pa.int64()),
            ("path", pa.string()),
            ("target", pa.int32()),
            ("target_name", pa.string()),
            (score_word, pa.float32()),
            ("saliency", pa.list_(element)),
            ("saliency_height", pa.int32()),
            ("saliency_width", pa.int32()),
            ("impacts", pa.list_(pa.float32())),
            ("peak_x", pa.float32()),
            ("peak_y", pa.float32()),
            ("box", pa.list_(pa.float32())),
            ("peak_in_box", pa.bool_()),
            ("error", pa.string()),
        ]
    )


def rows_of(
    index: int, item: Item, result: Explanation | Exception, resolution: str, dtype: str
) -> list[dict[str, Any]]:
    """The rows of one picture: one for each target, or one with an error."""
    path = as_text(item.path)
    common = {"index": index, "path": path, "box": list(item.box) if item.box else None}
    if isinstance(result, Exception):
        text = " ".join(str(result).split()) or type(result).__name__
        return [{**common, "error": as_text(text)}]
    rows = []
    for i, target in enumerate(result.targets):
        saliency = result.saliency[i]
        if resolution == "patch":
            saliency = at_patches(saliency, (result.masks.shape[1], result.masks.shape[2]))
        x, y = result.peak(i)
        inside = item.box and item.box[0] <= x <= item.box[2] and item.box[1] <= y <= item.box[3]
        rows.append(
            {
                **common,
                "target": target,
                "target_name": result.target_names[i],
                result.score_word: float(result.probabilities[target]),
                "saliency": saliency.astype(dtype).ravel(),
                "saliency_height": saliency.shape[0],
                "saliency_width": saliency.shape[1],
                "impacts": result.impacts[i],
                "peak_x": x,
                "peak_y": y,
                "peak_in_box": inside,
            }
        )
    return rows


def as_text(name: str) -> str:
    """A file name as Parquet takes it: bytes that are not UTF-8 are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def at_patches(saliency: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The mean of a (H,W) map over each patch: (h,w) float32."""
    image = Image.fromarray(np.ascontiguousarray(saliency, dtype=np.float32))
    return np.asarray(image.resize((grid[1], grid[0]), Image.Resampling.BOX), dtype=np.float32)


def digest_path(path: Path) -> Path:
    """Where a shard's SHA-256 stands, as `sha256sum --check` reads it."""
    return path.parent / DIGESTS_NAME / f"{path.stem}.sha256"


def write_shard(path: Path, rows: list[dict[str, Any]], dtype: str, score_word: str) -> None:
    """Write a shard and its digest, whole or not at all, also through a loss of power.

    The digest goes first: who is killed between the two leaves a shard that is missing, or an older
    one that does not match, and never a new one that nothing vouches for.
    """
    pa, parquet = import_pyarrow()
    table = pa.Table.from_pylist(rows, schema=schema(dtype, score_word))
    with replacing(path, durable=True) as temporary:
        parquet.write_table(table, temporary, compression="zstd")
        with replacing(digest_path(path), durable=True) as digest:
            digest.write_bytes(_digest_line(temporary, path.name))


def is_whole(path: Path, pictures: int) -> bool:
    """Whether a shard is on the disk as it was written.

    One without a digest was written by a vitcx that kept none: it must open and hold `pictures`.
    """
    if not path.is_file():
        return False
    try:
        expected = digest_path(path).read_bytes()
    except FileNotFoundError:
        return pictures_in(path) == pictures
    return _digest_line(path, path.name) == expected


def _digest_line(file: Path, name: str) -> bytes:
    return f"{sha256_of(file)}  {name}\n".encode()


def pictures_in(path: Path) -> int | None:
    """How many pictures a shard holds; None where there is no whole shard."""
    pa, parquet = import_pyarrow()
    try:
        column = parquet.read_table(path, columns=["index", "error"])
    except (OSError, pa.ArrowException):
        return None
    return len(set(column["index"].to_pylist()))


def errors_in(path: Path) -> int:
    """How many pictures of a shard failed."""
    _, parquet = import_pyarrow()
    column = parquet.read_table(path, columns=["error"])["error"]
    return len(column) - int(column.null_count)
