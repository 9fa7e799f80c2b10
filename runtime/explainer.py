"""The orchestrator: a picture goes in, an explanation comes out.

picture -> `preprocess` -> encode -> `masks` -> `clustering` -> `scheduler` -> `estimators` ->
`aggregation` -> `Explanation`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.philox import SEED_LIMIT
from vitcx.runtime.aggregation import aggregate
from vitcx.runtime.bundle import Bundle, Manifest, read_bundle
from vitcx.runtime.clustering import cluster
from vitcx.runtime.engines import open_session
from vitcx.runtime.errors import BundleError, EngineError, InputError
from vitcx.runtime.estimators import ESTIMATOR_NAMES, Estimator, choose_estimator
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.masks import cosine_distances, merge_masks, vit_masks
from vitcx.runtime.methods import (
    DEFAULT_RANDOM_MASKS,
    DROP,
    METHOD_NAMES,
    PLAIN,
    occlusion_masks,
    occlusion_of,
    random_masks,
    refuse_idle_settings,
)
from vitcx.runtime.preprocess import Prepared, prepare
from vitcx.runtime.scheduler import Scheduler, Task
from vitcx.runtime.session import Session
from vitcx.runtime.targets import resolve_targets

log = logging.getLogger("vitcx")

CLUSTER_MASKS = ("renormalised", "mean", "none")
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """How to explain. See `Explainer.explain` for what each does.

    Raises
    ------
    InputError
        At construction, if a value is out of range.
    """

    distance_threshold: float
    noise_std: float = 0.1
    seed: int = 0
    estimator: str = "paper"
    debias: bool = True
    coverage_correction: bool = True
    cluster_masks: str = "renormalised"
    method: str = "vit-cx"
    mask_count: int | None = None
    window: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        _in_range("distance_threshold", self.distance_threshold, 0, 1)
        _in_range("noise_std", self.noise_std, 0, math.inf)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"seed is {self.seed!r}: give a whole number")
        if not 0 <= self.seed < SEED_LIMIT:
            raise InputError(f"seed is {self.seed}: give one from 0 to 2^64 - 1")
        for name, value, allowed in (
            ("estimator", self.estimator, ESTIMATOR_NAMES),
            ("cluster_masks", self.cluster_masks, CLUSTER_MASKS),
            ("method", self.method, METHOD_NAMES),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}, not one of {', '.join(allowed)}")
        for name, switch in (
            ("debias", self.debias),
            ("coverage_correction", self.coverage_correction),
        ):
            if not isinstance(switch, bool):
                raise InputError(f"{name} is {switch!r}: give True or False")
        for name, count in (
            ("mask_count", self.mask_count),
            ("window", self.window),
            ("step", self.step),
        ):
            if count is not None and (
                isinstance(count, bool) or not isinstance(count, int) or count < 1
            ):
                raise InputError(f"{name} is {count!r}: give a whole number of at least 1, or None")


def _in_range(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}: give a number")
    if not (least <= value <= most and math.isfinite(value)):
        limit = f"from {least} to {most}" if math.isfinite(most) else f"of at least {least}"
        raise InputError(f"{name} is {value}: give a finite number {limit}")


@dataclass(eq=False)
class _Pending:
    """A picture whose rows are being scored."""

    prepared: Prepared
    probabilities: FloatArray
    targets: tuple[int, ...]
    task: Task
    settings: Settings
    seconds: dict[str, float]


class Explainer:
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

    def __enter__(self) -> Explainer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine. Twice does no harm."""
        self.session.close()

    def explain(
        self,
        image: Any,
        targets: Any = None,
        distance_threshold: float | None = None,
        noise_std: float = 0.1,
        seed: int = 0,
        estimator: str = "paper",
        debias: bool = True,
        coverage_correction: bool = True,
        cluster_masks: str = "renormalised",
        method: str = "vit-cx",
        mask_count: int | None = None,
        window: int | None = None,
        step: int | None = None,
    ) -> Explanation:
        """Explain one picture.

        Parameters
        ----------
        image : a path, a PIL image, an (H,W,3) uint8 array of any size, or an already normalised
            (3,H,W) floating array of the model's size (NumPy, or anything with DLPack in host
            memory).
        targets : None (the likeliest class), an int, a class name, a list of these, or ``"topN"``.
            Any number of targets costs one run: masks do not depend on the class.
        distance_threshold : δ of the clustering; None takes the bundle's (0.1; Swin 0.05).
        noise_std : σ of the noise, in normalised units.
        seed : of the noise. The same seed gives the same explanation.
        estimator : ``paper`` (eq. 2, 2K + 1 forward passes), ``fast`` (without the correction for
            the noise itself, K + 1) or ``antithetic`` (noise of both signs, 4K + 1).
        debias : False scores ``f(y|X⊙M)`` without noise (the paper's variants 3 and 5).
        coverage_correction : False leaves out the division by ρ (variants 4 and 5).
        cluster_masks : ``renormalised`` (the authors' code), ``mean`` (the paper's text) or
            ``none`` (every channel is a mask, variant 1).
        method : ``vit-cx``, or another method that works by masks: ``rise``, ``score-cam``,
            ``occlusion``, and ``random-cx``, which is ViT-CX with random masks (variant 2). See
            `vitcx.runtime.methods`. A setting that means nothing to the method is refused.
        mask_count : of ``rise`` (None: 4000) and ``random-cx`` (None: 5000).
        window, step : of ``occlusion``, in pixels of the model's input; None takes a seventh of
            the short side and half of that.

        Raises
        ------
        InputError
            If the picture, a target or a setting cannot be used.
        """
        settings = self._settings(
            distance_threshold=distance_threshold,
            noise_std=noise_std,
            seed=seed,
            estimator=estimator,
            debias=debias,
            coverage_correction=coverage_correction,
            cluster_masks=cluster_masks,
            method=method,
            mask_count=mask_count,
            window=window,
            step=step,
        )
        return next(_raising(self._stream([image], targets, settings)))

    def explain_many(
        self, images: Iterable[Any], targets: Any = None, **settings: Any
    ) -> Iterator[Explanation]:
        """Explain many pictures, their rows packed into full batches.

        Parameters
        ----------
        images : what `explain` takes, one after the other; read no faster than they are needed.
        targets, settings : as for `explain`, the same for every picture.

        Yields
        ------
        explanations in the order of the pictures. Memory is bounded by the few pictures whose rows
        share the running batches.

        Raises
        ------
        InputError
            At the first picture that cannot be used; those before it have been yielded.
        """
        return _raising(self._stream(images, targets, self._settings(**settings)))

    def try_explain_many(
        self, images: Iterable[Any], targets: Any = None, **settings: Any
    ) -> Iterator[Explanation | InputError]:
        """`explain_many` for pictures that may be bad: one that fails, fails alone.

        Yields
        ------
        in the order of the pictures, an explanation or the error that `explain` would have raised.
        """
        return self._stream(images, targets, self._settings(**settings))

    def _settings(self, **given: Any) -> Settings:
        defaults = {field.name: field.default for field in fields(Settings)}
        defaults["distance_threshold"] = None
        changed = {name for name in given if given[name] != defaults.get(name)}
        if given.get("method") in METHOD_NAMES:
            refuse_idle_settings(given["method"], changed)
        if given.get("distance_threshold") is None:
            given["distance_threshold"] = self.manifest.distance_threshold
        if unknown := sorted(given.keys() - {field.name for field in fields(Settings)}):
            raise InputError(f"there is no setting called {', '.join(unknown)}")
        return Settings(**given)

    def _stream(
        self, images: Iterable[Any], targets: Any, settings: Settings
    ) -> Iterator[Explanation | InputError]:
        scheduler = Scheduler(self.session)
        waiting: deque[_Pending | InputError] = deque()
        for image in images:
            try:
                pending = self._begin(image, targets, settings)
            except InputError as error:
                waiting.append(error)
            else:
                waiting.append(pending)
                scheduler.add(pending.task)
            while scheduler.pending_rows >= self.session.batch_size:
                scheduler.run_batch()
            yield from self._finished(waiting)
        while scheduler.pending_rows:
            scheduler.run_batch()
        yield from self._finished(waiting)

    def _finished(
        self, waiting: deque[_Pending | InputError]
    ) -> Iterator[Explanation | InputError]:
        """Take from the front of the queue what is ready."""
        while waiting:
            first = waiting[0]
            if isinstance(first, InputError):
                waiting.popleft()
                yield first
            elif first.task.done:
                waiting.popleft()
                yield self._finish(first)
            else:
                return

    def _begin(self, image: Any, targets: Any, settings: Settings) -> _Pending:
        """Everything before the masked forward passes."""
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        prepared = prepare(image, self.manifest)
        start = _lap(seconds, "preprocess", start)
        probabilities, embedding = self.session.encode(prepared.pixels[None])
        start = _lap(seconds, "encode", start)
        self._check(probabilities, embedding)
        chosen = resolve_targets(targets, probabilities[0], self.manifest.class_names)
        masks = self._masks(embedding[0], settings)
        _lap(seconds, "masks", start)
        task = Task(
            image=prepared.pixels,
            masks=masks,
            estimator=_estimator(settings),
            noise_std=float(settings.noise_std),
            seed=settings.seed,
            targets=np.asarray(chosen, dtype=np.int64),
        )
        return _Pending(prepared, probabilities[0], chosen, task, settings, seconds)

    def _check(self, probabilities: FloatArray, embedding: FloatArray) -> None:
        expected = (1, self.manifest.channels, *self.manifest.grid)
        if embedding.shape != expected or probabilities.shape != (1, self.manifest.num_classes):
            raise BundleError(
                f"the graph gives an embedding {embedding.shape} and probabilities "
                f"{probabilities.shape}; the manifest says {expected} and "
                f"{(1, self.manifest.num_classes)}: export the model again"
            )
        if not (np.isfinite(embedding).all() and np.isfinite(probabilities).all()):
            raise EngineError(
                "the model gives NaN or infinite values for this picture: the bundle's precision "
                f"({self.manifest.precision}) or its weights cannot be used"
            )

    def _masks(self, embedding: FloatArray, settings: Settings) -> FloatArray:
        size = self.manifest.input_size
        if settings.method in DEFAULT_RANDOM_MASKS:
            count = settings.mask_count or DEFAULT_RANDOM_MASKS[settings.method]
            return random_masks(count, settings.seed)
        if settings.method == "occlusion":
            return occlusion_masks(occlusion_of(settings.window, settings.step, size), size)
        masks = vit_masks(embedding, size)
        if len(masks) == 0:
            log.warning("every channel of the embedding is constant: the explanation is empty")
        unclustered = settings.cluster_masks == "none" or settings.method == "score-cam"
        if unclustered or len(masks) == 0:
            return masks
        labels = cluster(cosine_distances(masks, size), settings.distance_threshold)
        return merge_masks(masks, labels, size, settings.cluster_masks)

    def _finish(self, pending: _Pending) -> Explanation:
        """Everything after the last forward pass."""
        start = time.perf_counter()
        task, targets = pending.task, pending.targets
        base = pending.probabilities[task.targets]
        impacts = task.estimator.formula(task.scores, base).T
        settings = pending.settings
        saliency, coverage = aggregate(
            # Occlusion credits the pixels that were hidden, the others those that were shown.
            1 - task.masks if settings.method == "occlusion" else task.masks,
            np.ascontiguousarray(impacts),
            self.manifest.input_size,
            correct_coverage=settings.coverage_correction and settings.method != "score-cam",
        )
        timings = {**pending.seconds, **task.seconds}
        _lap(timings, "aggregation", start)
        timings["total"] = sum(timings.values())
        return Explanation(
            saliency=saliency,
            targets=targets,
            target_names=tuple(self.manifest.class_names[t] for t in targets),
            probabilities=pending.probabilities,
            masks=task.masks,
            impacts=np.ascontiguousarray(impacts),
            coverage=coverage,
            timings=timings,
            settings={
                **asdict(pending.settings),
                "forward_passes": task.estimator.passes(len(task.masks)),
            },
            provenance=self._provenance(),
            original=pending.prepared.original,
            box=pending.prepared.box,
        )

    def _provenance(self) -> dict[str, str]:
        return {
            "model": self.manifest.model_name,
            "layer": self.manifest.layer,
            "precision": self.manifest.precision,
            "model_sha256": self.manifest.files["model.onnx"],
            "engine": self.session.engine,
            "device": self.session.device,
            "vitcx": _version(),
        }


def _estimator(settings: Settings) -> Estimator:
    if settings.method == "occlusion":
        return DROP
    if settings.method in ("score-cam", "rise"):
        return PLAIN
    return choose_estimator(
        settings.estimator, noise_std=settings.noise_std, debias=settings.debias
    )


def _raising(results: Iterator[Explanation | InputError]) -> Iterator[Explanation]:
    for result in results:
        if isinstance(result, InputError):
            raise result
        yield result


def _version() -> str:
    try:
        return metadata.version("vitcx")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _lap(seconds: dict[str, float], stage: str, start: float) -> float:
    """Note the time since `start` under `stage`; returns now."""
    now = time.perf_counter()
    seconds[stage] = seconds.get(stage, 0.0) + now - start
    return now


def load(
    bundle: str | Path = "demo",
    engine: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> Explainer:
    """Load a bundle on an engine.

    Parameters
    ----------
    bundle : ``"demo"`` for the embedded model, or the folder that ``vitcx export`` wrote.
    engine : ``auto``, or one by name: ``onnxruntime``, ``cuda``, ``tensorrt``, ``tensorrt-rtx``.
        One asked for by name that cannot run here is an error.
    threads : CPU threads of one forward pass; None takes every core.
    batch_size : rows of a mask batch; None takes the engine's default.

    Returns
    -------
    an `Explainer`; use it in a ``with`` statement, or close it.

    Raises
    ------
    BundleError
        If the bundle is missing, damaged or does not fit.
    EngineError, MissingExtraError
        If the engine cannot run here.
    """
    folder = Path(__file__).parent / "demo" / "bundle" if bundle == "demo" else Path(bundle)
    checked = read_bundle(folder)
    return Explainer(checked, open_session(checked, engine, threads, batch_size))
