"""The steps from a picture to its explanation, each called by the pipeline when its turn comes.

picture -> `preprocess` -> encode -> `masks` -> `clustering` -> (`scheduler`) -> `estimators` ->
`aggregation` -> `Explanation`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.bundle import Manifest
from vitcx.runtime.engines.session import Session
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.estimators import Estimator, choose_estimator
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks
from vitcx.runtime.method.methods import (
    DEFAULT_RANDOM_MASKS,
    DROP,
    PLAIN,
    occlusion_masks,
    occlusion_of,
    random_masks,
)
from vitcx.runtime.pictures.preprocess import Prepared, prepare
from vitcx.runtime.pipeline.packing import Task
from vitcx.runtime.settings import Request, Settings
from vitcx.runtime.targets import resolve_targets

log = logging.getLogger("vitcx")

FloatArray = NDArray[np.float32]


@dataclass(eq=False)
class Pending:
    """A picture on its way; `Steps.encode` and `Steps.plan` fill what is not there yet."""

    request: Request
    prepared: Prepared
    seconds: dict[str, float]
    probabilities: FloatArray = field(init=False)
    embedding: FloatArray = field(init=False)
    targets: tuple[int, ...] = field(init=False)
    task: Task = field(init=False)


class Steps:
    """The steps for one bundle on one engine. Thread-safe.

    Parameters
    ----------
    manifest : what the bundle says of itself.
    session : the engine; not closed here.
    """

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self.manifest = manifest
        self.session = session
        self._encoder = manifest.encoder

    def prepare(self, request: Request) -> Pending:
        """The picture as the model's input."""
        start = time.perf_counter()
        prepared = prepare(request.image, self.manifest)
        seconds: dict[str, float] = {}
        _lap(seconds, "preprocess", start)
        return Pending(request, prepared, seconds)

    def encode(self, works: list[Pending]) -> None:
        """Probabilities and embeddings of some pictures, in one call of the engine."""
        start = time.perf_counter()
        images = np.stack([work.prepared.pixels for work in works])
        probabilities, embedding = self.session.encode(images)
        seconds = (time.perf_counter() - start) / len(works)
        self._check_shapes(probabilities, embedding, len(works))
        for i, work in enumerate(works):
            work.probabilities, work.embedding = probabilities[i], embedding[i]
            work.seconds["encode"] = seconds

    def plan(self, work: Pending) -> Task:
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

    def finish(self, work: Pending) -> Explanation:
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
            target_kind=self.manifest.target_kind,
        )

    def _provenance(self) -> dict[str, str]:
        computed_in = self.session.precision or self.manifest.precision
        own = self._encoder is self.manifest
        encoded_in = computed_in if own else self._encoder.precision
        return {
            "model": self.manifest.model_name,
            "layer": self.manifest.layer,
            "precision": self.manifest.precision,
            "model_sha256": self.manifest.model_sha256,
            "engine": self.session.engine,
            "device": self.session.device,
            "execution_precision": computed_in,
            "encoder_precision": self.session.encoder_precision or encoded_in,
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
