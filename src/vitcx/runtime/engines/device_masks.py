"""Making masks on a GPU, for the sessions that have one.

Where that cannot be done, as without cuBLAS, the session goes on without: the masks are made on the
host then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.mask_space import MaskSpace
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.device_errors import is_out_of_memory
from vitcx.runtime.engines.session import EncodedMasks

log = logging.getLogger("vitcx")


def open_mask_space(
    gpu: Gpu,
    launcher: KernelLauncher,
    stream: Stream,
    embedding: DeviceArray,
    size: tuple[int, int],
) -> MaskSpace | None:
    """A `MaskSpace`, or None where there can be none here, which the log says."""
    try:
        return MaskSpace(gpu, launcher, stream, embedding, size)
    except DeviceError as error:
        if is_out_of_memory(error):
            raise
        log.info("masks are made on the host: %s", first_line(error))
        return None


def joined(parts: Sequence[EncodedMasks]) -> EncodedMasks:
    """Pictures that were encoded in turn, as one."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return EncodedMasks(
        np.concatenate([part.probabilities for part in parts]),
        [masks for part in parts for masks in part.masks],
        np.concatenate(tokens) if tokens else None,
    )
