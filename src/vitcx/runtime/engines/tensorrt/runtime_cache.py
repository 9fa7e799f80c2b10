"""What TensorRT-RTX compiled for a context (its runtime cache), kept for the next ones.

A plan of TensorRT-RTX is compiled to the GPU's own kernels whenever a context is made: seconds of
all cores, for every context and at every start. What one context compiled makes the next one ready
at once. It is code, and kept as the plans are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcx.kernels.code_cache import read_code, write_code

_WHAT = "runtime cache"


class RuntimeCache:
    """That of one profile of a plan, in memory and in a file. Thread-safe: the last writer wins.

    Parameters
    ----------
    path : of the file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = read_code(path, _WHAT) or b""

    def begin(self, config: Any) -> Any:
        """A runtime cache with all that there is, set for the context that `config` is of.

        Keep it as long as the context, and give it to `keep` after the first pass.
        """
        cache = config.create_runtime_cache()
        # Refused where the driver or the GPU is another one than it was: its log says so.
        if self._content and not cache.deserialize(self._content):
            self._content = b""
        config.set_runtime_cache(cache)
        return cache

    def keep(self, cache: Any) -> None:
        """Keep what a context has compiled, if it is the first. A cache in use gives other contexts
        nothing: they need what is read from here.
        """
        if not self._content:
            self._content = bytes(memoryview(cache.serialize()))
            write_code(self._path, self._content, _WHAT)
