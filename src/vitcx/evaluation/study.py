"""Ask methods for maps, judge the maps, keep the figures, sum them up."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.boxes import best_overlaps, centre_hit, localisation, pointing_hit
from vitcx.evaluation.curves import DEFAULT_STEPS, Question, score_curves
from vitcx.evaluation.intervals import Interval, bootstrap
from vitcx.evaluation.metrics import METRICS, Figures
from vitcx.evaluation.records import Record, Records
from vitcx.evaluation.subjects import Subject
from vitcx.evaluation.variants import RANDOM_ORDER, parse_variant
from vitcx.runtime.engines.session import Session
from vitcx.runtime.explainer import Explainer

FloatArray = NDArray[np.float32]

# Pointing says little where a box fills the picture (the middle is a hit): it is reported for
# pictures whose boxes cover less than this share.
SMALL_OBJECT_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Answer:
    """A map for a subject, and the class it is for. `facts` are kept beside the figures."""

    subject: Subject
    target: int
    saliency: FloatArray
    facts: Mapping[str, Any] = field(default_factory=dict)


def explained(
    explainer: Explainer, subjects: Iterable[Subject], settings: Mapping[str, Any]
) -> Iterator[Answer]:
    """Answers by a mask-based method on the engine.

    Subjects without a target are packed with their neighbours; one with a target runs alone, since
    a study has one target for all its pictures.
    """
    waiting: deque[Subject] = deque()

    def untargeted() -> Iterator[FloatArray]:
        while waiting:
            taken.append(waiting.popleft())
            yield taken[-1].pixels

    taken: deque[Subject] = deque()
    for subject in subjects:
        if subject.target is None:
            waiting.append(subject)
            if len(waiting) < 8:  # enough pictures for the last short batch not to matter
                continue
        for result in explainer.explain_many(untargeted(), **settings):
            yield _answer(taken.popleft(), result)
        if subject.target is not None:
            yield _answer(subject, explainer.explain(subject.pixels, subject.target, **settings))
    for result in explainer.explain_many(untargeted(), **settings):
        yield _answer(taken.popleft(), result)


def _answer(subject: Subject, result: Any) -> Answer:
    facts = {
        "masks": len(result.masks),
        "seconds": round(result.timings["total"], 5),
        "mean_impact": float(result.impacts[0].mean()) if result.impacts.size else 0.0,
        "impact_variance": float(result.impacts[0].var()) if result.impacts.size else 0.0,
    }
    return Answer(subject, result.targets[0], result.saliency[0], facts)


def random_order(session: Session, subjects: Iterable[Subject]) -> Iterator[Answer]:
    """Answers that know nothing: random numbers, the same for the same subject."""
    for subject in subjects:
        rng = np.random.default_rng(zlib.crc32(subject.name.encode()))
        noise = rng.random(subject.pixels.shape[1:], dtype=np.float32)
        target = subject.target
        if target is None:
            target = int(session.predict(subject.pixels[None])[0].argmax())
        yield Answer(subject, target, noise)


def judged(
    session: Session,
    answers: Iterable[Answer],
    *,
    steps: int = DEFAULT_STEPS,
    canvas: str = "zero",
) -> Iterator[tuple[Answer, Record]]:
    """Each answer with its figures: curves and, where the truth is known, pointing and overlaps."""
    asked: deque[Answer] = deque()

    def questions() -> Iterator[Question]:
        for answer in answers:
            asked.append(answer)
            yield Question(answer.subject.pixels, answer.saliency, answer.target)

    for curves in score_curves(session, questions(), steps=steps, canvas=canvas):
        answer = asked.popleft()
        record: Record = {
            "image": answer.subject.name,
            "target": answer.target,
            "deletion": curves.deletion_auc,
            "insertion": curves.insertion_auc,
            "difference": curves.difference,
            "deletion_curve": [round(float(v), 5) for v in curves.deletion],
            "insertion_curve": [round(float(v), 5) for v in curves.insertion],
            **answer.facts,
        }
        truth = answer.subject.truth
        if truth is not None:
            record["pointing"] = pointing_hit(answer.saliency, truth)
            record["centre"] = centre_hit(truth)
            record["covered"] = float(truth.mean())
        if answer.subject.boxes:
            record["overlaps"] = best_overlaps(answer.saliency, answer.subject.boxes)
        yield answer, record


AnswerMaker = Callable[[Iterable[Subject]], Iterator[Answer]]


def engine_method(explainer: Explainer, variant: str) -> AnswerMaker:
    """The answers of a variant (see `parse_variant`), or of `RANDOM_ORDER`."""
    if variant == RANDOM_ORDER:
        return lambda subjects: random_order(explainer.session, subjects)
    settings = parse_variant(variant)
    return lambda subjects: explained(explainer, subjects, settings)


def run_study(
    session: Session,
    methods: Mapping[str, AnswerMaker],
    subjects: Callable[[], Iterable[Subject]],
    records: Records,
    *,
    steps: int = DEFAULT_STEPS,
    canvas: str = "zero",
    further: Mapping[str, Callable[[Question], Figures]] | None = None,
    advance: Callable[[str, bool], None] = lambda method, new: None,
) -> None:
    """Judge every method on every subject that `records` does not hold yet.

    Parameters
    ----------
    further : what measures more of a map, by method (see `vitcx.evaluation.metrics`).
    advance : called once for each line, with the method's name and whether it was judged now:
        those held already count too.
    """
    for name, answers in methods.items():

        def missing(name: str = name) -> Iterator[Subject]:
            for subject in subjects():
                if f"{name}|{subject.name}" in records:
                    advance(name, False)
                else:
                    yield subject

        for answer, record in judged(session, answers(missing()), steps=steps, canvas=canvas):
            if further is not None and name in further:
                asked = Question(answer.subject.pixels, answer.saliency, answer.target)
                record |= further[name](asked)
            records.add(f"{name}|{answer.subject.name}", method=name, **record)
            advance(name, True)


def summarise(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Figures by method: means with 95 % bootstrap intervals over the pictures."""
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    return {name: _summary(lines) for name, lines in by_method.items()}


def _summary(lines: Sequence[Record]) -> dict[str, Any]:
    result: dict[str, Any] = {"images": len(lines)}
    for figure in ("deletion", "insertion", "difference", "masks", "seconds", *METRICS):
        values = [line[figure] for line in lines if figure in line]
        if values:
            result[figure] = asdict(bootstrap(values))
    known = [line for line in lines if "pointing" in line]
    small = [line for line in known if line["covered"] < SMALL_OBJECT_SHARE]
    for label, chosen in (("pointing_all", known), ("pointing_small", small)):
        if chosen:
            result[label] = {
                **asdict(bootstrap([float(line["pointing"]) for line in chosen])),
                "centre": float(np.mean([line["centre"] for line in chosen])),
                "chance": float(np.mean([line["covered"] for line in chosen])),
            }
    if boxed := [line["overlaps"] for line in lines if "overlaps" in line]:
        result["localisation"] = localisation(boxed)
    for side in ("deletion", "insertion"):
        curves = np.array([line[f"{side}_curve"] for line in lines])
        result[f"{side}_curve"] = [round(float(v), 5) for v in curves.mean(axis=0)]
    return result


def paired(
    records: Iterable[Record], method: str, reference: str, figure: str = "difference"
) -> Interval:
    """`figure` of a method minus that of another, over the pictures that both have."""
    values: dict[str, dict[str, float]] = {method: {}, reference: {}}
    for record in records:
        if record["method"] in values:
            values[record["method"]][record["image"]] = record[figure]
    common = sorted(values[method].keys() & values[reference].keys())
    return bootstrap([values[method][name] - values[reference][name] for name in common])
