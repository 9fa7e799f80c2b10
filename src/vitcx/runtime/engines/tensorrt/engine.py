"""The engines ``tensorrt`` and ``tensorrt-rtx``."""

from __future__ import annotations

from functools import partial

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.engine import Engine, EngineStatus, SessionOptions
from vitcx.runtime.engines.gpu_probe import gpu_in_words, is_installed, probe_gpu
from vitcx.runtime.engines.session import Session
from vitcx.runtime.engines.tensorrt.capabilities import why_not_on
from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library
from vitcx.runtime.engines.tensorrt.session import TensorRTSession
from vitcx.runtime.errors import EngineError, MissingExtraError


def probe(flavour: str, device: int = 0) -> EngineStatus:
    """Whether there are the library and a GPU that it runs on."""
    problems, driver, gpu = probe_gpu(device)
    version = ""
    if driver is None and is_installed(FLAVOURS[flavour][0]):
        return EngineStatus.found(flavour, "", problems)  # there is nothing to load the library for
    try:
        library = find_library(flavour)
        version = library.version
        if gpu is not None:
            reason = why_not_on(library, gpu.compute_capability)
            problems += [reason] if reason else []
    except (EngineError, MissingExtraError) as error:
        problems.append(str(error))
    except Exception as error:
        problems.append(f"{flavour} does not work: {first_line(error)}")
    return EngineStatus.found(flavour, f"{flavour} {version} on {gpu_in_words(gpu)}", problems)


def _open(flavour: str, bundle: Bundle, options: SessionOptions) -> Session:
    # It has no use for the CPU's threads.
    return TensorRTSession(bundle, flavour, options.batch_size, device=options.device or 0)


ENGINES = tuple(
    Engine(flavour, extra, partial(probe, flavour), partial(_open, flavour), on_gpu=True)
    for flavour, (_, extra) in FLAVOURS.items()
)
