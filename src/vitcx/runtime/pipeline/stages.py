"""The steps from a picture to its explanation, each called by the pipeline when its turn comes.

picture -> `preprocess` -> encode -> the method's masks -> (`packing`) -> the estimator's impacts ->
`aggregation` -> `Explanation`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import DROPPED, KEPT
from vitcx.kernels.host.upsampling import upsample
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.engines.session import Session
from vitcx.runtime.errors import BundleError, InputError, NoAnswerError
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.method.aggregation import aggregate, coverage_of
from vitcx.runtime.method.estimators.teams import make_teams, team_patches
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.pictures.preprocess import prepare
from vitcx.runtime.pictures.reading import name_of
from vitcx.runtime.pipeline.scoring import PixelRows, Scoring, TokenRows
from vitcx.runtime.pipeline.work import Work
from vitcx.runtime.settings import Request, Settings
from vitcx.runtime.targets import resolve_targets

log = logging.getLogger("vitcx")

FloatArray = NDArray[np.float32]

# For methods that do not look at it, where the engine keeps it.
_NO_EMBEDDING = np.empty((0, 0, 0), dtype=np.float32)


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

    def least_rows(self, request: Request) -> int:
        """Rows that a picture has at least: those of masks that are not the model's."""
        method = METHODS[request.settings.method]
        masks = method.mask_count(request.settings, self.manifest.input_size) or 0
        return masks * len(method.estimator(request.settings).kinds)

    def prepare(self, work: Work) -> None:
        """The picture as the model's input."""
        start = time.perf_counter()
        work.prepared = prepare(work.request.image, self.manifest)
        _lap(work.seconds, "preprocess", start)

    def encode(self, works: list[Work]) -> None:
        """Probabilities of some pictures, and their embeddings or masks: one call of the engine."""
        start = time.perf_counter()
        session = self.session
        images = np.stack([work.prepared.pixels for work in works])
        take_tokens = session.scores_teams and any(_may_take_tokens(work.request) for work in works)
        tokens: FloatArray | None = None
        embedding: FloatArray | None = None
        made: list[FloatArray | None] = [None] * len(works)
        if session.makes_masks:
            orders = [_order(work.request) for work in works]
            encoded = session.encode_masks(images, orders, tokens=take_tokens)
            probabilities, made, tokens = encoded.probabilities, encoded.masks, encoded.tokens
        elif take_tokens:
            probabilities, embedding, tokens = session.encode_tokens(images)
        else:
            probabilities, embedding = session.encode(images)
        seconds = (time.perf_counter() - start) / len(works)
        self._check_shapes(probabilities, embedding, len(works))
        for i, work in enumerate(works):
            work.probabilities, work.made = probabilities[i], made[i]
            work.embedding = None if embedding is None else embedding[i]
            work.tokens = None if tokens is None else tokens[i]
            work.seconds["encode"] = seconds

    def choose_masks(self, work: Work) -> None:
        """The targets and the masks: what is to be scored."""
        start = time.perf_counter()
        settings = work.request.settings
        by_engine = self.session.makes_masks and _order(work.request) is not None
        if (
            not np.isfinite(work.probabilities).all()
            or (by_engine and work.made is None)
            or (work.embedding is not None and not np.isfinite(work.embedding).all())
        ):
            raise NoAnswerError(
                "the model gives NaN or infinite values for this picture: the bundle's precision "
                f"({self.manifest.precision}) or its weights cannot be used"
            )
        work.targets = resolve_targets(
            work.request.targets, work.probabilities, self.manifest.class_names
        )
        method = METHODS[settings.method]
        if work.made is not None:
            work.masks = work.made
        else:
            embedding = _NO_EMBEDDING if work.embedding is None else work.embedding
            work.masks = method.masks(embedding, settings, self.manifest.input_size)
        if len(work.masks) == 0:
            log.warning("every channel of the embedding is constant: the explanation is empty")
        work.estimator = method.estimator(settings)
        work.scoring = Scoring(
            rows=self._rows(work, settings),
            masks=len(work.masks),
            kinds=work.estimator.kinds,
            targets=np.asarray(work.targets, dtype=np.int64),
        )
        _lap(work.seconds, "masks", start)

    def _rows(self, work: Work, settings: Settings) -> PixelRows | TokenRows:
        """What is shown to the model for each mask."""
        masks, estimator = work.masks, work.estimator
        noise_std = settings.noise_std if estimator.noisy else 0.0
        image = work.prepared.pixels
        if not estimator.teams:
            return PixelRows(image, masks, estimator.kinds, noise_std, settings.seed)
        work.teams = make_teams(masks, settings.team_share)
        tokens = self._tokens(work, settings)
        if tokens is None:
            return PixelRows(image, work.teams, estimator.kinds, noise_std, settings.seed, True)
        # In reading order: the model's own, so that a team of all patches is the picture itself.
        kept, dropped = team_patches(work.teams)
        patches = {KEPT: kept, DROPPED: dropped}
        return TokenRows(tokens, {kind: patches[kind] for kind in estimator.kinds})

    def _tokens(self, work: Work, settings: Settings) -> FloatArray | None:
        """The picture's tokens, if teams are made of them; None if they are made of pixels."""
        if settings.hidden == "pixels":
            return None
        problem = ""
        if not self.session.scores_teams:
            problem = f"this bundle on the engine {self.session.engine!r} scores no tokens"
        elif work.masks.shape[1:] != self.manifest.token_grid:
            problem = f"the method {settings.method!r} has masks that are not on the patch grid"
        if not problem:
            return work.tokens
        if settings.hidden == "tokens":
            raise InputError(f"hidden is 'tokens', but {problem}: take 'auto' or 'pixels'")
        return None

    def _check_shapes(
        self, probabilities: FloatArray, embedding: FloatArray | None, pictures: int
    ) -> None:
        expected = (pictures, self.manifest.channels, *self.manifest.grid)
        answers = (pictures, self.manifest.num_classes)
        found = expected if embedding is None else embedding.shape
        if found != expected or probabilities.shape != answers:
            raise BundleError(
                f"the graph gives an embedding {found} and probabilities "
                f"{probabilities.shape}; the manifest says {expected} and {answers}: "
                "export the model again"
            )

    def finish(self, work: Work) -> Explanation:
        """Everything after the last forward pass."""
        start = time.perf_counter()
        scoring, targets, settings = work.scoring, work.targets, work.request.settings
        estimator = work.estimator
        base = work.probabilities[scoring.targets]
        impacts = np.ascontiguousarray(estimator.impacts(scoring.scores, base).T)
        if not np.isfinite(impacts).all():
            raise NoAnswerError(
                "the model gives NaN or infinite scores for masked versions of this picture: the "
                f"bundle's precision ({self.manifest.precision}) or its weights cannot be used"
            )
        saliency, coverage = self._map(work, impacts)
        timings = {**work.seconds, **scoring.seconds}
        _lap(timings, "aggregation", start)
        timings["total"] = sum(timings.values())
        in_force = {**asdict(settings), "forward_passes": estimator.passes(len(work.masks))}
        if estimator.teams:
            in_force["hidden"] = "tokens" if isinstance(scoring.rows, TokenRows) else "pixels"
        return Explanation(
            saliency=saliency,
            targets=targets,
            target_names=tuple(self.manifest.class_names[t] for t in targets),
            probabilities=work.probabilities,
            masks=work.masks,
            impacts=impacts,
            coverage=coverage,
            timings=timings,
            settings=in_force,
            provenance=self._provenance(),
            original=work.prepared.original,
            box=work.prepared.box,
            target_kind=self.manifest.target_kind,
            image=name_of(work.request.image),
        )

    def _map(self, work: Work, impacts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Saliency (T,H,W) and coverage (H,W)."""
        settings, size = work.request.settings, self.manifest.input_size
        method = METHODS[settings.method]
        if work.estimator.fit is not None and work.teams is not None and len(work.masks):
            low = work.estimator.fit(work.teams, work.masks, work.scoring.scores, settings)
            return upsample(low, size), coverage_of(work.masks, size)
        return aggregate(
            1 - work.masks if method.credits_hidden else work.masks,
            impacts,
            size,
            correct_coverage=method.corrects_coverage(settings),
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
            **({"plan": self.session.plan} if self.session.plan else {}),
            "teams_graph": self._teams_graph(),
            "vitcx": _version(),
        }

    def _teams_graph(self) -> str:
        """Whether teams of tokens could be asked, in words."""
        if self.session.scores_teams:
            return "open"
        if self.manifest.token_grid is None:
            return "none in the bundle"
        return f"not run by {self.session.engine}"


def _order(request: Request) -> MaskOrder | None:
    """The masks that an engine may make of its embedding; None if they are not the model's."""
    return METHODS[request.settings.method].order(request.settings)


def _may_take_tokens(request: Request) -> bool:
    """Whether its rows may be tokens: its picture's are wanted then."""
    settings = request.settings
    return settings.hidden != "pixels" and METHODS[settings.method].estimator(settings).teams


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
