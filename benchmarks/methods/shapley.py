"""ViT Shapley at its smallest: a second ViT learns the Shapley values of the embedded model.

Source: Covert, Kim, Lee, "Learning to estimate Shapley values with vision transformers" (ICLR
2023). Players are the N patches; ``v(s)`` is the (C,) probabilities when the patches outside the
coalition `s` are set to 0. The explainer is the classifier's own trunk, one more block and three
linear layers that give a number for each patch and class; it is trained by weighted least squares
over coalitions from the Shapley kernel, after its numbers are shifted to add up to ``v(1) - v(0)``.

What is smaller than published: the embedded model answers for masked pictures itself (half of its
training pictures were masked), where the paper trains a surrogate; the trunk stays as it is, where
the paper trains it further; a few minutes of training, all classes in every step.
``python -m benchmarks.methods.shapley --out FILE`` trains it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from benchmarks.command import Benchmark, finish
from benchmarks.models import embedded_module
from vitcx.evaluation.subjects import scene_subjects
from vitcx.export.timm_import import import_timm
from vitcx.kernels.host.upsampling import upsample
from vitcx.runtime.demo.scenes import make_scene
from vitcx.runtime.digests import replacing
from vitcx.runtime.explainer import load
from vitcx.runtime.pictures.preprocess import normalise

FloatArray = NDArray[np.float32]
LEARNING_RATE = 1e-3


def shapley_kernel(players: int) -> FloatArray:
    """(players - 1,) probability of a coalition's size, 1 to ``players - 1``; sums to 1."""
    size = np.arange(1, players)
    weight = 1 / (size * (players - size))
    return np.asarray(weight / weight.sum(), dtype=np.float32)


def coalitions(players: int, pairs: int, rng: np.random.Generator) -> FloatArray:
    """(2 pairs, players) of 0 and 1: draws from the Shapley kernel, each before its complement."""
    sizes = rng.choice(np.arange(1, players), size=pairs, p=shapley_kernel(players))
    order = rng.random((pairs, players)).argsort(axis=1)
    drawn = np.zeros((pairs, 2, players), dtype=np.float32)
    drawn[:, 0] = order < sizes[:, None]
    drawn[:, 1] = 1 - drawn[:, 0]
    return drawn.reshape(2 * pairs, players)


def efficient(values: Tensor, gap: Tensor) -> Tensor:
    """(B,N,C) shifted by a constant for each picture and class, to add up to `gap` (B,C)."""
    return values + ((gap - values.sum(dim=1)) / values.shape[1])[:, None]


def shapley_loss(values: Tensor, members: Tensor, gains: Tensor) -> Tensor:
    """Mean of ``(v(s) - v(0) - Σ_{i in s} φ_i)²``: values (B,N,C), members (B,S,N), gains (B,S,C).

    Its minimiser over efficient values, coalitions drawn from the kernel, is the Shapley values.
    """
    return (gains - members @ values).square().mean()


class ShapleyViT(nn.Module):
    """Images (B,3,H,W) to a number for each patch and class (B,N,C), not yet efficient."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        import_timm()
        from timm.models.vision_transformer import Block

        trunk: Any = copy.deepcopy(classifier)
        width, classes = trunk.embed_dim, trunk.num_classes
        self.trunk = trunk
        self.block = Block(width, trunk.blocks[-1].attn.num_heads)
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, classes),
        )
        # Starts near equal shares for all patches.
        last: Any = self.head[-1]
        last.weight.data.mul_(0.1)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(B,prefix + N,D) what the trunk, which does not learn, makes of pictures."""
        found: Tensor = self.trunk.forward_features(images)
        return found

    def shares(self, tokens: Tensor) -> Tensor:
        """(B,N,C) of the trunk's tokens."""
        found: Tensor = self.head(self.block(tokens)[:, self.trunk.num_prefix_tokens :])
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.shares(self.tokens(images))


def keep_patches(image: Tensor, members: Tensor, grid: tuple[int, int]) -> Tensor:
    """(S,3,H,W): a picture (3,H,W) with the patches outside each coalition (S,N) set to 0."""
    mask = members.reshape(-1, 1, *grid)
    scale = (image.shape[1] // grid[0], image.shape[2] // grid[1])
    return image * mask.repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3)


@torch.no_grad()
def worths(classifier: Any, image: Tensor, members: Tensor) -> Tensor:
    """(S,C) probabilities when the patches of each coalition (S,N) are left."""
    frames = keep_patches(image, members, classifier.patch_embed.grid_size)
    worth: Tensor = classifier(frames).softmax(dim=1)
    return worth


@torch.no_grad()
def _ends(classifier: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """``v(0)`` (B,C) and ``v(1) - v(0)`` (B,C)."""
    empty = classifier(torch.zeros_like(images[:1])).softmax(dim=1)
    return empty, classifier(images).softmax(dim=1) - empty


def attributions(explainer: ShapleyViT, classifier: nn.Module, images: Tensor) -> Tensor:
    """(B,N,C) efficient values."""
    return efficient(explainer(images), _ends(classifier, images)[1])


def load_shapley(weights: Path, classifier: nn.Module) -> ShapleyViT:
    """The trained explainer from a safetensors file."""
    from safetensors.torch import load_file

    explainer = ShapleyViT(classifier)
    explainer.load_state_dict(load_file(weights))
    return explainer.eval()


@torch.no_grad()
def shapley_map(
    explainer: ShapleyViT, classifier: Any, image: FloatArray, target: int
) -> FloatArray:
    """(H,W) map: the values of the patches, upsampled as every other map here."""
    found = attributions(explainer, classifier, torch.from_numpy(image)[None])[0, :, target]
    low = found.reshape(classifier.patch_embed.grid_size).numpy()
    return upsample(np.ascontiguousarray(low), image.shape[1:])


def explained_share(
    explainer: ShapleyViT, classifier: Any, images: Tensor, pairs: int, rng: np.random.Generator
) -> float:
    """Of the square of ``v(s) - v(0) - |s|/N (v(1) - v(0))``, the share that the values explain."""
    players = int(np.prod(classifier.patch_embed.grid_size))
    left = whole = 0.0
    with torch.no_grad():
        empty, gaps = _ends(classifier, images)
        for image, gap in zip(images, gaps, strict=True):
            members = torch.from_numpy(coalitions(players, pairs, rng))
            gains = worths(classifier, image, members) - empty
            values = attributions(explainer, classifier, image[None])
            equal = efficient(torch.zeros_like(values), gap[None])
            left += float(shapley_loss(values, members[None], gains[None]))
            whole += float(shapley_loss(equal, members[None], gains[None]))
    return 1 - left / whole


def train(
    classifier: Any, images: Tensor, *, pairs: int, epochs: int, batch: int, seed: int = 0
) -> ShapleyViT:
    """An explainer for the classifier; `pairs` pairs of coalitions are scored once a picture."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    players = int(np.prod(classifier.patch_embed.grid_size))
    members = torch.from_numpy(
        np.stack([coalitions(players, pairs, rng) for _ in range(len(images))])
    )
    explainer = ShapleyViT(classifier).eval()
    tokens, gaps, gains = [], [], []
    for image, chosen in zip(track(images, "coalitions", transient=True), members, strict=True):
        empty, gap = _ends(classifier, image[None])
        tokens.append(explainer.tokens(image[None])[0])
        gaps.append(gap[0])
        gains.append(worths(classifier, image, chosen) - empty)
    token_of, gap_of, gain_of = torch.stack(tokens), torch.stack(gaps), torch.stack(gains)
    learning = [*explainer.block.parameters(), *explainer.head.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=LEARNING_RATE)
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, epochs * steps)
    for step in track(range(epochs * steps), "training", transient=True):
        if step % steps == 0:
            order = rng.permutation(len(images))
        rows = order[step % steps * batch :][:batch]
        values = efficient(explainer.shares(token_of[rows]), gap_of[rows])
        loss = shapley_loss(values, members[rows], gain_of[rows])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return explainer


@click.command(cls=Benchmark)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="safetensors file.")
@click.option("--scenes", default=1000, show_default=True, help="Drawn scenes to learn from.")
@click.option("--pairs", default=12, show_default=True, help="Pairs of coalitions of each scene.")
@click.option("--epochs", default=30, show_default=True)
@click.option("--batch", default=32, show_default=True, help="Scenes of a step.")
def main(out: Path, scenes: int, pairs: int, epochs: int, batch: int) -> None:
    """Train an explainer of the embedded model; scenes for training and checking differ."""
    from safetensors.torch import save_file

    with load("demo") as bundle:
        classifier = embedded_module(bundle.bundle.model_path)
        manifest = bundle.manifest
        drawn = [normalise(make_scene(seed).image, manifest) for seed in range(scenes)]
        fresh = {s.name: s.pixels for s in scene_subjects(manifest, 50)}
    explainer = train(
        classifier, torch.from_numpy(np.stack(drawn)), pairs=pairs, epochs=epochs, batch=batch
    )
    share = explained_share(
        explainer,
        classifier,
        torch.from_numpy(np.stack(list(fresh.values()))),
        pairs,
        np.random.default_rng(1),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as path:
        save_file(explainer.state_dict(), path)
    finish({"written": str(out), "explained_share_of_fresh_scenes": share}, None, ("torch",))


if __name__ == "__main__":
    main()
