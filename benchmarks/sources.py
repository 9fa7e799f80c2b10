"""Where a model of table 1 comes from, and the pictures that it is asked about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.embedded import embedded_module
from benchmarks.methods import Model
from vitcx.evaluation.boxes import Annotation
from vitcx.evaluation.subjects import Subject, picture_subjects, scene_subjects
from vitcx.export import export_model
from vitcx.export.sources.timm_models import timm_model
from vitcx.runtime.bundle import Manifest
from vitcx.runtime.explainer import load

DEMO = "demo"


@dataclass(frozen=True)
class Source:
    """Where a model's weights and its pictures come from.

    ``demo`` is the embedded model, whose pictures are drawn scenes with the truth known.
    """

    name: str
    checkpoint: Path | None
    images: list[Path]
    annotations: Mapping[str, Annotation]
    scenes: int
    explain_label: bool
    squash: bool

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[Model]:
        """The model in torch and on an engine; its bundle is exported to `folder` once."""
        if self.name == DEMO:
            with load(DEMO) as explainer:
                yield Model(embedded_module(explainer.bundle.model_path), explainer)
            return
        bundle = folder / "bundle"
        if not (bundle / "manifest.json").exists():
            export_model(self.name, bundle, checkpoint=self.checkpoint)
        module, _ = timm_model(self.name, self.checkpoint)
        with load(bundle) as explainer:
            yield Model(module, explainer)

    def subjects(self, manifest: Manifest) -> list[Subject]:
        if self.name == DEMO:
            return list(scene_subjects(manifest, self.scenes))
        return list(
            picture_subjects(
                self.images,
                manifest,
                self.annotations,
                explain_label=self.explain_label,
                squash=self.squash,
            )
        )
