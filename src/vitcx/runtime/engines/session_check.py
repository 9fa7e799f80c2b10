"""Whether a session that has just opened computes the bundle's model.

Engines have been silently wrong: fused attention in half precision on some GPUs, for one. So every
session encodes and scores one picture when it opens. Where the bundle has a record of what the
model made of that picture at export, it must come near enough to it; a bundle without one must
still give what its manifest says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.errors import first_line
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.check_record import (
    drawn_picture,
    embedding_difference,
    read_record,
    scores_difference,
    scores_sum_to_one,
)
from vitcx.runtime.engines.session import Session, TeamBatch
from vitcx.runtime.errors import BundleError, EngineError, VitcxError
from vitcx.runtime.manifest import Manifest

FloatArray = NDArray[np.float32]

# The largest relative difference (root mean square) of embedding and logits by what computes them,
# where the bundle does not say otherwise. DeiT-Tiny's are 1e-5, 0.003, 0.03 and 0.1; an attention
# that is computed wrong is off by 0.5 and more.
TOLERANCES = {"fp32": 2e-3, "fp16": 0.05, "bf16": 0.2, "int8": 0.3}
# What sessions call their precision -> what bundles do.
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Of the sum of probabilities: half precision rounds each of a thousand classes.
_SUM_TOLERANCE = 0.02


def check_session(session: Session, bundle: Bundle) -> None:
    """Run the bundle's check on a session.

    Raises
    ------
    BundleError
        The graph cannot run, or gives what is no answer: other shapes, NaN, no probabilities.
    EngineError
        The answers are not those of the model at export: this engine computes something else.
    """
    manifest = bundle.manifest
    record = read_record(bundle.path, manifest)
    if record is None:
        images = drawn_picture(manifest.input_size, manifest.mean, manifest.std)
    else:
        images = record.images
    try:
        probabilities, embedding = session.encode(images)
        scores = {"scores": session.predict(images)}
        if session.scores_teams:
            scores["scores of teams"] = score_whole_team(session, manifest, images)
    except VitcxError:
        raise
    except Exception as error:  # engines have types of their own
        raise BundleError(
            f"the engine '{session.engine}' cannot run the graph of '{bundle.path}': "
            f"{first_line(error)}"
        ) from error
    _check_answers(bundle, {"encoder's scores": probabilities, **scores}, embedding)

    encoder_tolerance = _tolerance(manifest, manifest.encoder.precision, session.encoder_precision)
    tolerance = _tolerance(manifest, manifest.precision, session.precision)
    expected = probabilities
    if record is not None:
        expected = record.probabilities
        _compare(
            session,
            "embedding",
            embedding_difference(embedding, record.embedding),
            encoder_tolerance,
        )
        _compare(
            session,
            "encoder's scores",
            scores_difference(probabilities, expected, manifest),
            encoder_tolerance,
        )
    for name, found in scores.items():
        _compare(session, name, scores_difference(found, expected, manifest), tolerance)


def _tolerance(manifest: Manifest, of_graph: str, of_session: str) -> float:
    """The wider one: a graph in int8 stays that where an engine computes in float32."""
    tolerances = {**TOLERANCES, **manifest.check_tolerances}
    return max(tolerances[of_graph], tolerances[_PRECISIONS.get(of_session, of_graph)])


def score_whole_team(session: Session, manifest: Manifest, images: FloatArray) -> FloatArray:
    """The scores of the team that has every patch: those of the picture itself."""
    assert manifest.token_grid is not None
    _, _, tokens = session.encode_tokens(images)
    patches = np.arange(np.prod(manifest.token_grid), dtype=np.int64)
    batch = TeamBatch(tokens=[tokens[0]], pictures=[0], patches=[patches])
    return session.score_teams(batch).probabilities[:1]


def _check_answers(bundle: Bundle, scores: dict[str, FloatArray], embedding: FloatArray) -> None:
    """Raise `BundleError` if these cannot be answers of any model with this manifest."""
    manifest = bundle.manifest
    answers = (1, manifest.num_classes)
    features = (1, manifest.channels, *manifest.grid)
    shapes = {name: found.shape for name, found in scores.items()}
    if embedding.shape != features or set(shapes.values()) != {answers}:
        raise BundleError(
            f"the graph of '{bundle.path}' gives an embedding {embedding.shape} and scores "
            f"{next((s for s in shapes.values() if s != answers), answers)}; the manifest says "
            f"{features} and {answers}: export the model again"
        )
    for name, found in {**scores, "embedding": embedding}.items():
        if not np.isfinite(found).all():
            raise BundleError(
                f"the {name} of '{bundle.path}' are NaN or infinite for an ordinary picture: its "
                f"weights or its precision ({manifest.precision}) cannot be used"
            )
    if not manifest.scores_are_probabilities:
        return
    for name, found in scores.items():
        least, most, total = float(found.min()), float(found.max()), float(found.sum())
        if least < 0 or most > 1 + _SUM_TOLERANCE:
            raise BundleError(
                f"the {name} of '{bundle.path}' are between {least:.3g} and {most:.3g}, which are "
                f"no probabilities: the graph lacks the head's {manifest.head}; export it again"
            )
        if scores_sum_to_one(manifest) and abs(total - 1) > _SUM_TOLERANCE:
            raise BundleError(
                f"the {name} of '{bundle.path}' add up to {total:.3g}, and probabilities of "
                f"classes to 1: the graph lacks the head's {manifest.head}; export it again"
            )


def _compare(session: Session, name: str, difference: float, tolerance: float) -> None:
    if difference <= tolerance:
        return
    raise EngineError(
        f"the engine '{session.engine}' on {session.device} does not compute this model: on the "
        f"bundle's check picture the {name} differ by {difference:.2%} from the model at export "
        f"(at most {tolerance:.2%}); take another engine, or another version of its library and "
        "driver. If all engines differ, export the model again"
    )
