"""The result: maps, masks, impacts, and what they were made with."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.runtime.manifest import SCORE_KINDS
from vitcx.runtime.pictures.gallery import at_shown_size, side_by_side
from vitcx.runtime.pictures.overlay import add_caption, overlay
from vitcx.runtime.remarks import flat_remark, scores_alike
from vitcx.runtime.result_files import save_result
from vitcx.runtime.summary import difference_of, summary_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A map whose range is within float32 rounding of its magnitude is flat: stretched to [0, 1] it
# would show rounding as evidence.
FLAT_RTOL = 1e-5
STRENGTH = 0.8  # of an overlay's colours

# Of the targets: shown side by side in a notebook, and named in the one line of `repr`.
MOST_SHOWN, MOST_NAMED = 4, 3

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """An explanation of one picture for T target classes by K masks.

    As the last line of a notebook's cell it shows its overlays.

    Attributes
    ----------
    saliency : (T,H,W) float32 in the model's input frame: S of eq. 5 divided by K. With coverage
        corrected, it is the cover-weighted mean impact of the masks over a pixel. Higher is more
        evidence; unbounded in principle, within [-1, 2] for eq. 2.
    targets : T class indices; `target_names` are their names.
    probabilities : (C,) float32, the model's answer for the picture: probabilities, or scores where
        `target_kind` says that they are none.
    masks : (K,h,w) float32 at patch resolution; the pixel masks are their bilinear upsampling.
    impacts : (T,K) float32, ``s_k`` of eq. 2 (or of the estimator chosen).
    coverage : (H,W) float32 in [0, 1], ρ of section 3.4.
    timings : seconds by stage; packed with others, this picture's share of the shared batches.
    settings : the settings in force.
    provenance : model, engine, device and versions.
    original : the picture as a person sees it.
    box : (left, top, right, bottom), what the model saw of `original`, in its pixels.
    target_kind : what a target is, one of `vitcx.runtime.manifest.TARGET_KINDS`.
    image : the path or name that the picture was given by; None for arrays and PIL images.
    against : index and name of the class that maps and impacts are the difference to; None where
        they are the targets' own. See `minus`.
    """

    saliency: FloatArray
    targets: tuple[int, ...]
    target_names: tuple[str, ...]
    probabilities: FloatArray
    masks: FloatArray
    impacts: FloatArray
    coverage: FloatArray
    timings: Mapping[str, float]
    settings: Mapping[str, Any]
    provenance: Mapping[str, str]
    original: Image.Image
    box: tuple[float, float, float, float]
    target_kind: str = "class"
    image: str | None = None
    against: tuple[int, str] | None = None

    def __repr__(self) -> str:
        titles = [self.title(i) for i in range(min(len(self.targets), MOST_NAMED))]
        if more := len(self.targets) - len(titles):
            titles.append(f"{more} more")
        height, width = self.saliency.shape[1:]
        source = "" if self.image is None else f" of {self.image}"
        text = (
            f"<Explanation{source}: {', '.join(titles)}; {len(self.masks)} masks, {height}x{width}>"
        )
        # Names come from bundles and files: none of them may move a terminal's cursor.
        return "".join(c if c.isprintable() else "?" for c in text)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        targets = range(min(len(self.targets), MOST_SHOWN))
        side_by_side([add_caption(*shown) for shown in self._shown(targets)]).save(png, "PNG")
        return png.getvalue()

    @property
    def scores_are_probabilities(self) -> bool:
        """Whether `probabilities` holds such, or scores of another kind."""
        return self.target_kind not in SCORE_KINDS

    @property
    def score_word(self) -> str:
        """What `summary` calls the score of a target: ``probability`` or ``score``."""
        return "probability" if self.scores_are_probabilities else "score"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know before trusting the maps: a sentence each, mostly none."""
        return tuple(
            flat_remark(name, self.impacts[i], self.settings.get("estimator"))
            for i, name in enumerate(self.target_names)
            if scores_alike(self.impacts[i])
        )

    def heatmap(self, i: int = 0) -> FloatArray:
        """(H,W) float32: the saliency of target `i`, min-max normalised to [0, 1].

        A flat map is 0 everywhere.
        """
        values = self.saliency[i]
        least, greatest = values.min(), values.max()
        span = greatest - least
        if span <= FLAT_RTOL * max(abs(least), abs(greatest)):
            return np.zeros_like(values)
        return np.asarray((values - least) / span, dtype=np.float32)

    def overlay(
        self, i: int = 0, *, strength: float = STRENGTH, caption: bool = False
    ) -> Image.Image:
        """The heatmap of target `i` over the original picture, crop and resize undone.

        Parameters
        ----------
        i : place in `targets`.
        strength : in [0, 1], how strongly the colours cover the picture.
        caption : add a strip below the picture with the target and its score.

        Returns
        -------
        An RGB image of the original's size, or a little taller with a caption. What the model did
        not see (outside the crop) has no colour and is dimmed.
        """
        picture = overlay(self.original, self.heatmap(i), self.box, strength)
        return add_caption(picture, self.title(i)) if caption else picture

    def contrast(self, i: int = 0, j: int = 1) -> FloatArray:
        """Why target `i` and not target `j`: (H,W) float32, the difference of their saliencies.

        The maps are linear in the scores, so this is the map of the difference of the two scores:
        positive where the picture speaks for `i`, negative where it speaks for `j`. It costs no
        pass.
        """
        return np.asarray(self.saliency[i] - self.saliency[j], dtype=np.float32)

    def minus(self, j: int = -1) -> Explanation:
        """Why each of the other targets and not target `j`: maps and impacts are the differences.

        See `contrast`. The result has one target fewer, and `against` says which.

        Raises
        ------
        InputError
            If there is no other target, or one is the same class.
        """
        return replace(self, **difference_of(self, j))

    def title(self, i: int = 0) -> str:
        """The name of target `i` and its probability, or its score as a number.

        Where maps are differences, the same of the other class follows.
        """
        title = f"{self.target_names[i]}  {self._score_in_words(self.targets[i])}"
        if self.against is None:
            return title
        index, name = self.against
        return f"{title}, not {name}  {self._score_in_words(index)}"

    def _score_in_words(self, index: int) -> str:
        score = self.probabilities[index]
        return f"{score:.1%}" if self.scores_are_probabilities else f"{score:.4g}"

    def figure(self, i: int = 0, *, masks: int = 6) -> Figure:
        """A figure: picture, saliency, coverage, and the strongest `masks` masks by impact.

        Raises
        ------
        MissingExtraError
            Without matplotlib (extra ``plot``).
        """
        from vitcx.runtime.pictures.figure import draw_figure

        return draw_figure(
            self.original,
            self.box,
            self.title(i),
            saliency=self.saliency[i],
            coverage=self.coverage,
            masks=self.masks,
            impacts=self.impacts[i],
            count=masks,
        )

    def plot(self, *, contrast: tuple[int, int] | None = (0, 1)) -> Figure:
        """A figure: the picture, the overlay of each target, and the contrast of two targets.

        Parameters
        ----------
        contrast : places in `targets`: red is what speaks for the first of them and not for the
            second, blue the other way round. None leaves the contrast out, and so does a single
            target.

        Raises
        ------
        MissingExtraError
            Without matplotlib (extra ``plot``).
        """
        from vitcx.runtime.pictures.plot import draw_plot

        picture, box = at_shown_size(self.original, self.box)
        overlays, titles = zip(*self._shown(range(len(self.targets))), strict=True)
        difference = None
        if contrast is not None and len(self.targets) > 1:
            i, j = contrast
            names = self.target_names[i], self.target_names[j]
            difference = (self.contrast(i, j), box, *names)
        return draw_plot(picture, overlays, titles, difference)

    def _shown(self, places: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
        """Overlay and title of each of these targets, at a size to look at."""
        picture, box = at_shown_size(self.original, self.box)
        for i in places:
            yield overlay(picture, self.heatmap(i), box, STRENGTH), self.title(i)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, as `save` writes them."""
        against = {} if self.against is None else {"against": np.asarray(self.against[0], np.int64)}
        return {
            **against,
            "saliency": self.saliency,
            "targets": np.asarray(self.targets, dtype=np.int64),
            "probabilities": self.probabilities,
            "masks": self.masks,
            "impacts": self.impacts,
            "coverage": self.coverage,
        }

    def summary(self) -> dict[str, Any]:
        """What is not an array, ready for JSON."""
        return summary_of(self)

    def peak(self, i: int = 0) -> tuple[float, float]:
        """(x, y) of the highest saliency of target `i`, in pixels of the original picture."""
        height, width = self.saliency.shape[1:]
        row, column = divmod(int(self.saliency[i].argmax()), width)
        left, top, right, bottom = self.box
        x = left + (column + 0.5) * (right - left) / width
        y = top + (row + 0.5) * (bottom - top) / height
        return round(x, 2), round(y, 2)

    def save(
        self,
        folder: str | Path,
        stem: str,
        *,
        figure: bool = False,
        image: str | Path | None = None,
    ) -> dict[str, Path]:
        """Write ``STEM.png`` (overlay), ``STEM.npz`` (arrays) and ``STEM.json`` (the rest).

        With several targets the overlays after the first are ``STEM.CLASS_INDEX.png``. Each file
        appears whole or not at all, the JSON last. A result of the same picture that is there
        already is replaced, and nothing else is.

        Parameters
        ----------
        folder : made if it is not there.
        stem : of the file names; one that is too long for a file name is shortened.
        figure : also write ``STEM.figure.png``; needs matplotlib (extra ``plot``).
        image : where the picture came from, if it is not `self.image`: the JSON names it, with the
            digest of its file. Where neither is known, the JSON has a digest of the pixels.

        Returns
        -------
        the paths written, by kind.

        Raises
        ------
        InputError
            If a file of that name is there which is not of the same picture.
        """
        return save_result(self, folder, stem, image or self.image, figure=figure).files
