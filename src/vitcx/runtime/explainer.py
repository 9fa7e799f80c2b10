"""The public face: a picture goes in, an explanation comes out.

`settings` says what is asked for, `pipeline.stages` holds what is done to a picture, `pipeline`
decides what runs when.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcx.kernels.closing import Closing
from vitcx.runtime.bundle import Bundle, read_bundle
from vitcx.runtime.engines.registry import EngineName, open_session
from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.errors import InputError
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.manifest import MANIFEST_NAME, Manifest
from vitcx.runtime.method.registry import METHODS, complete_settings
from vitcx.runtime.pipeline.pipeline import Pipeline
from vitcx.runtime.pipeline.stages import Steps
from vitcx.runtime.precision_limits import check_precision
from vitcx.runtime.settings import Request, SettingValues
from vitcx.runtime.targets import Targets

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("vitcx")

# The most that the masks of one picture may take.
MOST_MASK_BYTES = 1 << 30
# Of `open_pipeline`.
# Two batches with the engine, so that it has the next one when it ends the first; two threads more
# prepare, encode and finish beside them.
PIPELINE_WORKERS = 4
PIPELINE_SCORERS = 2
ENCODE_SIZE = 1
LEAST_IN_FLIGHT = 8


class Explainer(Closing):
    """Explains pictures with one bundle on one engine. Thread-safe; a context manager.

    Made by `vitcx.load`.

    Attributes
    ----------
    manifest : what the bundle says of itself.
    session : the engine.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.session = session

    def close(self) -> None:
        """Free the engine. Twice does no harm."""
        self.session.close()

    def explain(
        self, image: Any, targets: Targets = None, **settings: Unpack[SettingValues]
    ) -> Explanation:
        """Explain one picture.

        Parameters
        ----------
        image : a path, a PIL image, an (H,W,3) uint8 array of any size, or an already normalised
            (3,H,W) floating array of the model's size: NumPy; anything with DLPack or
            ``__cuda_array_interface__``; a `vitcx.kernels.gpu.arrays.DevicePointer`. One in a GPU's
            memory is copied to the host once, behind the work of its producer's stream: pictures
            are packed there, on every engine.
        targets : None (the likeliest class), an int, a class name, a list of these, or ``"topN"``.
            Any number of targets costs one run: masks do not depend on the class.
        preset : settings under one name: ``paper`` (the default), ``quick``, ``balanced`` or
            ``best``; see `vitcx.runtime.presets`.
        settings : single settings, which override the preset's: the fields of
            `vitcx.runtime.settings.Settings`. One that means nothing to the method or its estimator
            is refused.

        Raises
        ------
        InputError
            If the picture, a target or a setting cannot be used.
        """
        request = self.request(image, targets, **settings)
        with self.open_pipeline(workers=0) as pipeline:
            return next(pipeline.stream([request])).result()

    def explain_many(
        self, images: Iterable[Any], targets: Targets = None, **settings: Unpack[SettingValues]
    ) -> Iterator[Explanation]:
        """Explain many pictures, their rows packed into full batches.

        Parameters
        ----------
        images : what `explain` takes, one after the other; read no faster than they are needed.
        targets, settings : as for `explain`, the same for every picture.

        Yields
        ------
        explanations in the order of the pictures. Memory is bounded by the few pictures whose rows
        share the running batches; they are read ahead of the results, so an array must not be
        written to until its explanation is there.

        Raises
        ------
        InputError
            At the first picture that cannot be used; those before it have been yielded.
        """
        return _raising(self.try_explain_many(images, targets, **settings))

    def try_explain_many(
        self, images: Iterable[Any], targets: Targets = None, **settings: Unpack[SettingValues]
    ) -> Generator[Explanation | Exception, None, None]:
        """`explain_many` for pictures that may be bad: one that fails, fails alone.

        Yields
        ------
        in the order of the pictures, an explanation or the error that `explain` would have raised.

        Raises
        ------
        Exception
            What the engine raised, if it failed, or what `images` raised: neither is a fault of a
            picture. The pictures before have been yielded.
        """
        template = self.request(None, targets, **settings)
        return self.explain_requests(replace(template, image=image) for image in images)

    def explain_requests(
        self, requests: Iterable[Request]
    ) -> Generator[Explanation | Exception, None, None]:
        """`try_explain_many` for pictures that have targets and settings of their own."""
        with self.open_pipeline() as pipeline:
            for ticket in pipeline.stream(requests):
                error = ticket.exception()
                if error is None:
                    yield ticket.result()
                elif ticket.engine_failed or not isinstance(error, Exception):
                    try:
                        raise error
                    finally:
                        del error, ticket  # the traceback has this frame: they would be a ring
                else:
                    yield error

    def request(
        self, image: Any, targets: Targets = None, **settings: Unpack[SettingValues]
    ) -> Request:
        """A picture to explain, with the targets and settings that `explain` takes.

        Raises
        ------
        InputError
            If a setting cannot be used, or the masks it asks for would not fit in memory. The
            picture and the targets are looked at later.
        """
        chosen = complete_settings(settings, self.manifest.distance_threshold)
        size = METHODS[chosen.method].mask_bytes(chosen, self.manifest.input_size)
        if size > MOST_MASK_BYTES:
            raise InputError(
                f"the masks of {chosen.method!r} would take {size / 2**30:.1f} GiB, and the limit "
                f"is {MOST_MASK_BYTES / 2**30:g}: ask for fewer, with a larger window or step, or "
                "a smaller mask_count"
            )
        return Request(image, targets, chosen)

    def open_pipeline(
        self,
        *,
        workers: int = PIPELINE_WORKERS,
        limit: int | None = None,
        in_order: bool = True,
        on_batch: Callable[[int, Scores], None] | None = None,
    ) -> Pipeline:
        """Threads that explain what is submitted to them. See `vitcx.runtime.pipeline.pipeline`."""
        return Pipeline(
            Steps(self.manifest, self.session),
            limit=limit or max(LEAST_IN_FLIGHT, self.session.batch_size // 4),
            workers=workers,
            # One thread is left to prepare what comes next.
            scorers=max(1, min(PIPELINE_SCORERS, workers - 1)),
            encode_size=ENCODE_SIZE,
            in_order=in_order,
            on_batch=on_batch,
        )


def _raising(results: Generator[Explanation | Exception, None, None]) -> Iterator[Explanation]:
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, Exception):
                try:
                    raise result
                finally:
                    del result  # as in `explain_requests`
            yield result


def load(
    bundle: str | Path = "demo",
    engine: EngineName | str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    allow_imprecise: bool = False,
    device: int | None = None,
) -> Explainer:
    """Load a bundle on an engine.

    Parameters
    ----------
    bundle : ``"demo"`` for the embedded model, or the folder that ``vitcx export`` wrote. The word
        ``"demo"`` is always the embedded model: a folder of that name is ``"./demo"``.
    engine : ``auto``, or one by name: ``tensorrt``, ``tensorrt-rtx``, ``cuda``, ``onnxruntime``,
        ``openvino``, ``openvino-bf16``. One asked for by name that cannot run here is an error.
    threads : CPU threads of one forward pass; None takes every core.
    batch_size : rows of a mask batch; None takes the engine's default.
    allow_imprecise : load a bundle of a reduced precision even where what export measured is
        beyond the limits (`vitcx.runtime.precision_limits`), or where nothing was measured.
    device : index of the GPU, of the engines that run on one; None takes the first. With a number,
        ``auto`` takes GPU engines alone.

    Returns
    -------
    an `Explainer`; use it in a ``with`` statement, or close it.

    Raises
    ------
    BundleError
        If the bundle is missing, damaged, does not fit or is too imprecise.
    EngineError, MissingExtraError
        If the engine cannot run here.
    """
    checked = read_bundle(find_bundle(bundle))
    check_precision(checked.manifest, allow_imprecise=allow_imprecise)
    return Explainer(checked, open_session(checked, engine, threads, batch_size, device))


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle. The word ``"demo"`` is the embedded model, and says so in the log
    where a folder of that name could be meant.
    """
    if bundle != "demo":
        return Path(bundle)
    if Path("demo", MANIFEST_NAME).exists():
        log.warning(
            "'demo' is the embedded model; for the bundle in the folder 'demo' give './demo'"
        )
    return Path(__file__).parent / "demo" / "bundle"
