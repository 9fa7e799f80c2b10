"""The graph that scores teams: a model run on some of a picture's patches, the others left out.

A ViT whose attention is global takes any set of tokens. What a patch is of the picture its token
says, position added; so a pass over half of the patches is the model's answer to half of the
picture, for less than half of the work. Where blocks are told positions as well (rotary or relative
ones), those of the kept patches are taken too.

Whether a model is of that kind is tried, not looked up: `find_teams` runs it on a few teams and
compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.graph.heads import HeadScores, Softmax, logits_of
from vitcx.export.graph.positions import OF_PAIRS, OF_PATCHES, of_pairs, positions_taken, taken

# Two runs of the same products in another order: 1e-6 of the rms, 1e-5 where a few tokens are
# large. A block that needs its neighbours, or a position left out, is off by 1e-2 or more.
_TOLERANCE = 1e-3
_SEED = 20240814


class NoTeams(Exception):
    """The model needs every patch in place; the message says how that was seen."""


class Teams(nn.Module):
    """Scores of teams: the rows of a batch are a picture's prefix tokens and some of its patches.

    Parameters
    ----------
    model : has `blocks`, `norm`, `forward_head` and `num_prefix_tokens`, as timm's have.
    grid : (h, w) of its patches.
    width : W of its tokens.
    keywords : what each block is called with beside its tokens.
    scores : logits (B,C) to scores; None is a softmax.

    Attributes
    ----------
    prefix : how many tokens come before the patches'.
    """

    def __init__(
        self,
        model: Any,
        grid: tuple[int, int],
        width: int,
        keywords: Sequence[Mapping[str, Any]],
        scores: HeadScores | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.grid = grid
        self.prefix = int(model.num_prefix_tokens)
        self.token_shape = self.prefix + grid[0] * grid[1], width
        self.keywords = tuple(dict(k) for k in keywords)
        self.scores = Softmax() if scores is None else scores
        self.eval()

    def forward(self, tokens: Tensor, pictures: Tensor, patches: Tensor) -> Tensor:
        """Scores of teams.

        Parameters
        ----------
        tokens : (P,T,W) float32 as the first block takes them, prefix tokens first.
        pictures : (B,) int64 in [0, P), the picture of each row.
        patches : (B,n) int64 in [0, h·w), those that each row keeps, counted row by row.

        Returns
        -------
        Tensor
            (B,C) float32.
        """
        scores: Tensor = self.scores(self.logits(self.features(tokens, pictures, patches)))
        return scores

    def features(self, tokens: Tensor, pictures: Tensor, patches: Tensor) -> Tensor:
        """(B, prefix + n, W) after the last block and the model's norm."""
        kept = torch.cat([self._prefix_indices(patches), patches + self.prefix], dim=1)
        # One gather over the tokens of all pictures: no picture is copied for each of its rows.
        places = pictures[:, None] * tokens.shape[1] + kept
        x = nn.functional.embedding(places, tokens.reshape(-1, tokens.shape[2]))
        with positions_taken(self.model, lambda bias: of_pairs(bias, kept)):
            for block, keywords in zip(self.model.blocks, self.keywords, strict=True):
                x = block(x, **taken(keywords, kept, patches))
        normed: Tensor = self.model.norm(x)
        return normed

    def logits(self, features: Tensor) -> Tensor:
        """(B,C) of `features`."""
        logits: Tensor = self.model.forward_head(features)
        return logits.float()

    def _prefix_indices(self, patches: Tensor) -> Tensor:
        first = torch.arange(self.prefix, device=patches.device)
        return first.expand(patches.shape[0], -1)


def find_teams(model: nn.Module, shape: Sequence[int], scores: HeadScores | None = None) -> Teams:
    """The teams of a model in evaluation mode.

    Parameters
    ----------
    model : maps images to logits; left as it is.
    shape : (channels, H, W) of an image.
    scores : logits (B,C) to scores; None is a softmax.

    Raises
    ------
    NoTeams
        If the model cannot be run on some of its patches, or gives something else than it should.
    """
    anything: Any = model
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    blocks = getattr(model, "blocks", None)
    parts = ("norm", "forward_head", "num_prefix_tokens")
    if (
        grid is None
        or not isinstance(blocks, nn.Sequential | nn.ModuleList)
        or len(blocks) == 0
        or not all(hasattr(model, part) for part in parts)
    ):
        raise NoTeams("its blocks are not a plain list that takes the patches of a grid")
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(2, *shape, generator=generator)
    with torch.no_grad():
        called = _watch(model, images)
        grid = (int(grid[0]), int(grid[1]))
        teams = Teams(anything, grid, called.tokens.shape[-1], called.keywords, scores)
        _check_shapes(called, teams)
        try:
            _check(teams, called, generator)
        except NoTeams:
            raise
        except Exception as error:  # whatever a model says when its patches are not all there
            reason = (str(error).strip().splitlines() or [""])[0]
            raise NoTeams(f"it does not run on some of them: {reason}") from error
    return teams


@dataclass(frozen=True)
class _Called:
    """What was seen in one pass: a block's tokens and keywords, and the model's logits."""

    tokens: Tensor
    keywords: tuple[dict[str, Any], ...]
    logits: Tensor


def _watch(model: Any, images: Tensor) -> _Called:
    tokens: list[Any] = []
    keywords: list[dict[str, Any]] = []

    def note(block: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        tokens.append(arguments)
        keywords.append(dict(named))

    hooks = [b.register_forward_pre_hook(note, with_kwargs=True) for b in model.blocks]
    try:
        logits = logits_of(model(images))
    except Exception as error:
        raise NoTeams("it does not run on two pictures") from error
    finally:
        for hook in hooks:
            hook.remove()
    if len(tokens) != len(model.blocks) or any(len(arguments) != 1 for arguments in tokens):
        raise NoTeams("its blocks do not run once each, on tokens alone")
    return _Called(tokens[0][0], tuple(keywords), logits.float())


def _check_shapes(called: _Called, teams: Teams) -> None:
    """Whether tokens and keywords have the axes that a team is taken along."""
    h, w = teams.grid
    patches, every = h * w, teams.prefix + h * w
    tokens = called.tokens
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[1] != every:
        raise NoTeams("its blocks do not take one token for each patch")
    for keywords in called.keywords:
        for name, value in keywords.items():
            if not isinstance(value, Tensor):
                continue
            fits = (name in OF_PATCHES and value.ndim in (2, 3) and value.shape[-2] == patches) or (
                name in OF_PAIRS and value.ndim in (3, 4) and value.shape[-2:] == (every, every)
            )
            if not fits:
                raise NoTeams(f"its blocks are given '{name}' {tuple(value.shape)}")


def _check(teams: Teams, called: _Called, generator: torch.Generator) -> None:
    """Compare with the model's own answer, in any order of the patches, and with plain torch."""
    count = teams.grid[0] * teams.grid[1]
    tokens = called.tokens.float()
    both = torch.arange(2)
    ordered = torch.arange(count)
    shuffled = torch.stack([torch.randperm(count, generator=generator) for _ in both])
    whole = teams.features(tokens, both, ordered.expand(2, -1))
    _compare("with every patch", teams.logits(whole), called.logits)
    mixed = teams.features(tokens, both, shuffled)
    _compare("in another order", teams.logits(mixed), called.logits)
    back = mixed[:, teams.prefix :][both[:, None], shuffled.argsort(1)]
    _compare("in another order", back, whole[:, teams.prefix :])
    _compare("in another order", mixed[:, : teams.prefix], whole[:, : teams.prefix])
    half = shuffled[[1, 0, 1], : max(1, count // 2)].roll(1, 0)
    pictures = torch.tensor([1, 0, 1])
    some = teams.features(tokens, pictures, half)
    for row, (picture, patches) in enumerate(zip(pictures, half, strict=True)):
        alone = plain_features(teams, tokens[int(picture)], patches)
        _compare("with half of them", some[row], alone)


def plain_features(teams: Teams, tokens: Tensor, patches: Tensor) -> Tensor:
    """What `Teams.features` gives for one row, written apart from it: (prefix + n, W).

    Parameters
    ----------
    teams : of which the model is run.
    tokens : (T,W) of one picture.
    patches : (n,) int64.
    """
    kept = torch.cat([torch.arange(teams.prefix), patches + teams.prefix])
    x = tokens[kept].unsqueeze(0)
    with positions_taken(teams.model, lambda bias: bias[..., kept, :][..., kept]):
        for block, keywords in zip(teams.model.blocks, teams.keywords, strict=True):
            given = dict(keywords)
            for name, value in keywords.items():
                if isinstance(value, Tensor) and name in OF_PATCHES:
                    given[name] = value[..., patches, :]
                elif isinstance(value, Tensor):
                    given[name] = value[..., kept, :][..., kept]
            x = block(x, **given)
    normed: Tensor = teams.model.norm(x)
    return normed[0]


def _compare(how: str, got: Tensor, expected: Tensor) -> None:
    """Raise `NoTeams` if two tensors differ by more than rounding."""
    if got.shape != expected.shape:
        raise NoTeams(f"{how} it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
    if not expected.numel():  # there are no prefix tokens
        return
    scale = expected.double().square().mean().sqrt()
    off = (got.double() - expected).square().mean().sqrt()
    if not bool(off <= _TOLERANCE * scale):
        raise NoTeams(f"{how} it gives another answer, by {float(off / scale):.0e} of its rms")
