"""The orchestrator: a picture goes in, an explanation comes out.

picture -> `preprocess` -> encode -> `masks` -> `clustering` -> `scheduler` -> `estimators` ->
`aggregation` -> `Explanation`. `pipeline` decides what runs when; the steps are here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
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
from vitcx.runtime.pipeline import Pipeline
from vitcx.runtime.preprocess import Prepared, prepare
from vitcx.runtime.scheduler import Task
from vitcx.runtime.session import Scores, Session
from vitcx.runtime.targets import resolve_targets

log = logging.getLogger("vitcx")

CLUSTER_MASKS = ("renormalised", "mean", "none")
FloatArray = NDArray[np.float32]

# Of `open_pipeline`.
PIPELINE_WORKERS = 2
PIPELINE_SCORERS = 1
ENCODE_SIZE = 1
LEAST_IN_FLIGHT = 8


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


@dataclass(frozen=True, eq=False)
class Request:
    """A picture to explain: made by `Explainer.request`, which checks the settings."""

    image: Any
    targets: Any
    settings: Settings


@dataclass(eq=False)
class _Pending:
    """A picture on its way; `Explainer.encode` and `Explainer.plan` fill what is not there yet."""

    request: Request
    prepared: Prepared
    seconds: dict[str, float]
    probabilities: FloatArray = field(init=False)
    embedding: FloatArray = field(init=False)
    targets: tuple[int, ...] = field(init=False)
    task: Task = field(init=False)


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
        request = self.request(
            image,
            targets,
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
        with self.open_pipeline(workers=0) as pipeline:
            return next(pipeline.stream([request])).result()

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
        share the running batches; they are read ahead of the results, so an array must not be
        written to until its explanation is there.

        Raises
        ------
        InputError
            At the first picture that cannot be used; those before it have been yielded.
        """
        return _raising(self.try_explain_many(images, targets, **settings))

    def try_explain_many(
        self, images: Iterable[Any], targets: Any = None, **settings: Any
    ) -> Generator[Explanation | Exception, None, None]:
        """`explain_many` for pictures that may be bad: one that fails, fails alone.

        Yields
        ------
        in the order of the pictures, an explanation or the error that `explain` would have raised.

        Raises
        ------
        Exception
            What the engine raised, if it failed: that is no fault of a picture.
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
                    raise error
                else:
                    yield error

    def request(self, image: Any, targets: Any = None, **settings: Any) -> Request:
        """A picture to explain, with the targets and settings that `explain` takes.

        Raises
        ------
        InputError
            If a setting cannot be used. The picture and the targets are looked at later.
        """
        return Request(image, targets, self._settings(**settings))

    def open_pipeline(
        self,
        *,
        workers: int = PIPELINE_WORKERS,
        limit: int | None = None,
        in_order: bool = True,
        on_batch: Callable[[int, Scores], None] | None = None,
    ) -> Pipeline:
        """Threads that explain what is submitted to them. See `vitcx.runtime.pipeline`."""
        return Pipeline(
            self,
            limit=limit or max(LEAST_IN_FLIGHT, self.session.batch_size // 4),
            workers=workers,
            scorers=PIPELINE_SCORERS,
            encode_size=ENCODE_SIZE,
            in_order=in_order,
            on_batch=on_batch,
        )

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

    # ---- the steps, called by the pipeline

    def prepare(self, request: Request) -> _Pending:
        """The picture as the model's input."""
        start = time.perf_counter()
        prepared = prepare(request.image, self.manifest)
        seconds: dict[str, float] = {}
        _lap(seconds, "preprocess", start)
        return _Pending(request, prepared, seconds)

    def encode(self, works: list[_Pending]) -> None:
        """Probabilities and embeddings of some pictures, in one call of the engine."""
        start = time.perf_counter()
        images = np.stack([work.prepared.pixels for work in works])
        probabilities, embedding = self.session.encode(images)
        seconds = (time.perf_counter() - start) / len(works)
        self._check_shapes(probabilities, embedding, len(works))
        for i, work in enumerate(works):
            work.probabilities, work.embedding = probabilities[i], embedding[i]
            work.seconds["encode"] = seconds

    def plan(self, work: _Pending) -> Task:
        """The targets and the masks: what is to be scored."""
        start = time.perf_counter()
        settings = work.request.settings
        if not (np.isfinite(work.embedding).all() and np.isfinite(work.probabilities).all()):
            raise EngineError(
                "the model gives NaN or infinite values for this picture: the bundle's precision "
                f"({self.manifest.precision}) or its weights cannot be used"
            )
        work.targets = resolve_targets(
            work.request.targets, work.probabilities, self.manifest.class_names
        )
        work.task = Task(
            image=work.prepared.pixels,
            masks=self._masks(work.embedding, settings),
            estimator=_estimator(settings),
            noise_std=float(settings.noise_std),
            seed=settings.seed,
            targets=np.asarray(work.targets, dtype=np.int64),
        )
        _lap(work.seconds, "masks", start)
        return work.task

    def _check_shapes(
        self, probabilities: FloatArray, embedding: FloatArray, pictures: int
    ) -> None:
        expected = (pictures, self.manifest.channels, *self.manifest.grid)
        answers = (pictures, self.manifest.num_classes)
        if embedding.shape != expected or probabilities.shape != answers:
            raise BundleError(
                f"the graph gives an embedding {embedding.shape} and probabilities "
                f"{probabilities.shape}; the manifest says {expected} and {answers}: "
                "export the model again"
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

    def finish(self, work: _Pending) -> Explanation:
        """Everything after the last forward pass."""
        start = time.perf_counter()
        task, targets, settings = work.task, work.targets, work.request.settings
        base = work.probabilities[task.targets]
        impacts = task.estimator.formula(task.scores, base).T
        if not np.isfinite(impacts).all():
            raise EngineError(
                "the model gives NaN or infinite scores for masked versions of this picture: the "
                f"bundle's precision ({self.manifest.precision}) or its weights cannot be used"
            )
        saliency, coverage = aggregate(
            # Occlusion credits the pixels that were hidden, the others those that were shown.
            1 - task.masks if settings.method == "occlusion" else task.masks,
            np.ascontiguousarray(impacts),
            self.manifest.input_size,
            correct_coverage=settings.coverage_correction and settings.method != "score-cam",
        )
        timings = {**work.seconds, **task.seconds}
        _lap(timings, "aggregation", start)
        timings["total"] = sum(timings.values())
        return Explanation(
            saliency=saliency,
            targets=targets,
            target_names=tuple(self.manifest.class_names[t] for t in targets),
            probabilities=work.probabilities,
            masks=task.masks,
            impacts=np.ascontiguousarray(impacts),
            coverage=coverage,
            timings=timings,
            settings={
                **asdict(settings),
                "forward_passes": task.estimator.passes(len(task.masks)),
            },
            provenance=self._provenance(),
            original=work.prepared.original,
            box=work.prepared.box,
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


def _raising(results: Generator[Explanation | Exception, None, None]) -> Iterator[Explanation]:
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, Exception):
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
