"""TensorRT or TensorRT-RTX, found once: the module, its version, and a logger that it keeps.

The two have the same Python API. They differ in how a network says its precisions, which is settled
here, and in the builder's few settings of their own.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitcx.runtime.errors import EngineError, InputError, MissingExtraError

log = logging.getLogger("vitcx")

# Flavour, which is the engine's name -> (module, extra that installs it).
FLAVOURS = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}

# Severity and text.
Message = tuple[int, str]


class Severity(enum.IntEnum):
    """TensorRT's own, under the numbers that its loggers get."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


# What TensorRT calls information is a page for each build: nobody who asks vitcx to tell more means
# that.
_LEVELS = {
    Severity.INTERNAL_ERROR: logging.ERROR,
    Severity.ERROR: logging.ERROR,
    Severity.WARNING: logging.WARNING,
    Severity.INFO: logging.DEBUG,
    Severity.VERBOSE: logging.DEBUG - 5,
}


class Listeners:
    """Who hears what the library logs. Thread-safe.

    A message goes to whoever listens on the thread that it came on: what a thread calls, it hears
    of. The library's own threads, such as a builder's, have no listener: all hear those, because
    nothing says for whom they work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening: list[tuple[int, list[Message]]] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Message]]:
        """A list that fills with messages until the block ends, and not after."""
        entry: tuple[int, list[Message]] = (threading.get_ident(), [])
        with self._lock:
            self._listening.append(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._listening = [other for other in self._listening if other is not entry]

    def tell(self, message: Message) -> bool:
        """Pass a message on; whether anybody hears it."""
        thread = threading.get_ident()
        with self._lock:
            own = [messages for owner, messages in self._listening if owner == thread]
            heard = own or [messages for _, messages in self._listening]
            for messages in heard:
                messages.append(message)
        return bool(heard)


@dataclass(frozen=True)
class Library:
    """One flavour of TensorRT.

    Attributes
    ----------
    flavour : "tensorrt" or "tensorrt-rtx".
    module : `tensorrt` or `tensorrt_rtx`.
    version : of the library, such as "1.7.1.116".
    logger : an `ILogger` that forwards to the logger "vitcx". TensorRT wants one for the process.
    """

    flavour: str
    module: Any
    version: str
    logger: Any
    _listeners: Listeners = field(default_factory=Listeners, repr=False, compare=False)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def network_flags(self) -> int:
        """For `Builder.create_network`: strongly typed, in each version's way.

        A network's precisions are those of its ONNX file, and nothing else's.
        """
        if self.flavour == "tensorrt-rtx" or self.major >= 11:
            return 0  # every network is
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @contextlib.contextmanager
    def heard(self) -> Iterator[list[Message]]:
        """A list that fills with the library's messages: its calls return None and log the cause.

        An exception that comes out of here is to have the words of the errors, and may be dealt
        with: meanwhile the log has them for those who look for a fault. Where none comes they are
        errors there.
        """
        with self._listeners.listening() as messages:
            yield messages
        for severity, text in messages:
            if severity <= Severity.ERROR:
                log.error("%s: %s", self.module.__name__, text)


@functools.cache
def find_library(flavour: str) -> Library:
    """The library called `flavour`, imported when first asked for.

    Raises
    ------
    InputError
        There is no such flavour.
    MissingExtraError
        It is not installed.
    EngineError
        It is installed and does not load.
    """
    if flavour not in FLAVOURS:
        raise InputError(
            f"the flavour of TensorRT is {flavour!r}, not one of {', '.join(FLAVOURS)}"
        )
    name, extra = FLAVOURS[flavour]
    missing = MissingExtraError(f"the engine '{flavour}'", name, extra)
    try:
        module: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise EngineError(f"the module '{name}' does not load: {error}") from error
        raise missing from None
    except Exception as error:  # the packages load their libraries by ctypes: OSError, RuntimeError
        raise EngineError(f"the module '{name}' does not load: {error}") from error
    # The package of type stubs leaves a folder that imports as an empty module.
    if not hasattr(module, "Builder"):
        raise missing
    listeners = Listeners()
    logger = _logger(module, listeners)
    return Library(flavour, module, str(module.__version__), logger, listeners)


def _logger(module: Any, listeners: Listeners) -> Any:
    """An `ILogger` of the module that forwards to `logging` and to the listeners."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            known = Severity(int(severity))
            heard = listeners.tell((known, msg))
            level = logging.DEBUG if heard and known <= Severity.ERROR else _LEVELS[known]
            log.log(level, "%s: %s", module.__name__, msg)

    return Logger()
