"""The graph that scores teams: a model run on some of a picture's patches, the others left out.

A ViT whose attention is global takes any set of tokens. What a patch is of the picture its token
says, position added; so a pass over half of the patches is the model's answer to half of the
picture, for less than half of the work. Where blocks are told positions as well (rotary or relative
ones), those of the kept patches are taken too.

Whether a model is of that kind is tried, not looked up: `find_teams` runs it on a few teams and
compares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitcx.export.graph.arrangement import Tokens
from vitcx.export.graph.blocks import (
    Watched,
    attends_before,
    ending_with,
    lists_around,
    run_block,
    watch,
)
from vitcx.export.graph.embedding import Site, find_site
from vitcx.export.graph.heads import HeadScores, Softmax, logits_of
from vitcx.export.graph.layout import Probe
from vitcx.export.graph.positions import (
    for_team,
    of_pairs,
    of_patches,
    positions_taken,
    strange_value,
)

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
    model : maps images to logits.
    blocks : of `model`, one after the other.
    arrange : prefix tokens and grid of what the blocks take.
    watched : a pass of `model`.
    shape : (channels, H, W) of an image.
    scores : logits (B,C) to scores; None is a softmax.

    Attributes
    ----------
    prefix : how many tokens come before the patches'.
    grid : (h, w) of the patches.
    token_shape : (T, W) of a picture's tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        arrange: Tokens,
        watched: Watched,
        shape: Sequence[int],
        scores: HeadScores | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.blocks = tuple(blocks)
        self.prefix, self.grid = arrange.prefix, arrange.grid
        self.token_shape = int(watched.tokens.shape[1]), int(watched.tokens.shape[2])
        self.calls, self.in_tuple = watched.calls, watched.in_tuple
        self.scores = Softmax() if scores is None else scores
        # What comes after the blocks is run as a part of the model, which starts with a picture.
        self.register_buffer("nothing", torch.zeros(1, *shape), persistent=False)
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
        """(B, prefix + n, W) after the last block."""
        kept = torch.cat([self._prefix_indices(patches), patches + self.prefix], dim=1)
        # One gather over the tokens of all pictures: no picture is copied for each of its rows.
        places = pictures[:, None] * tokens.shape[1] + kept
        x = nn.functional.embedding(places, tokens.reshape(-1, tokens.shape[2]))
        with positions_taken(self.model, lambda bias: of_pairs(bias, kept)):
            for block, call in zip(self.blocks, self.calls, strict=True):
                told = for_team(
                    call, lambda v: of_patches(v, patches), lambda bias: of_pairs(bias, kept)
                )
                x = run_block(block, x, told)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """(B,C) of `features`."""
        pictures = self.get_buffer("nothing").expand(features.shape[0], -1, -1, -1)
        with ending_with(self.blocks, features, in_tuple=self.in_tuple):
            return logits_of(self.model(pictures)).float()

    def _prefix_indices(self, patches: Tensor) -> Tensor:
        first = torch.arange(self.prefix, device=patches.device)
        return first.expand(patches.shape[0], -1)


def find_teams(
    model: nn.Module,
    shape: Sequence[int],
    scores: HeadScores | None = None,
    site: Site | None = None,
) -> Teams:
    """The teams of a model in evaluation mode.

    Parameters
    ----------
    model : maps images to logits; left as it is.
    shape : (channels, H, W) of an image.
    scores : logits (B,C) to scores; None is a softmax.
    site : of the model's embedding; None finds it.

    Raises
    ------
    NoTeams
        If the model cannot be run on some of its patches, or gives something else than it should.
    """
    if site is None:
        site = find_site(model, probe=Probe.of((shape[1], shape[2]), shape[0]))
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(2, *shape, generator=generator)
    with torch.no_grad():
        teams, watched = _plain_list(model, site, images, scores)
        try:
            _check(teams, watched, generator)
        except NoTeams:
            raise
        except Exception as error:  # whatever a model says when its patches are not all there
            reason = (str(error).strip().splitlines() or [""])[0]
            raise NoTeams(f"it does not run on some of them: {reason}") from error
    return teams


def _plain_list(
    model: nn.Module, site: Site, images: Tensor, scores: HeadScores | None
) -> tuple[Teams, Watched]:
    """The teams by the outermost list around the embedding whose elements take its tokens."""
    reason = "its blocks are not a plain list that takes the patches of a grid"
    if not isinstance(site.arrange, Tokens):
        raise NoTeams(reason)
    for first, blocks in lists_around(model, site.path):
        try:
            watched = watch(model, blocks, images)
        except Exception as error:
            raise NoTeams("it does not run on two pictures") from error
        if watched is None:
            reason = "its blocks do not run once each, on tokens"
            continue
        found = _what_is_wrong(watched, site.arrange)
        if found is None and attends_before(model, first, images):
            # What a token left out says of the picture, the others have heard already.
            found = "its patches have seen each other before these blocks"
        if found is None:
            return Teams(model, blocks, site.arrange, watched, images.shape[1:], scores), watched
        reason = found
    raise NoTeams(reason)


def _what_is_wrong(watched: Watched, arrange: Tokens) -> str | None:
    """Why tokens and positions have no axes that a team could be taken along; None if they have."""
    patches = arrange.grid[0] * arrange.grid[1]
    every = arrange.prefix + patches
    if watched.tokens.ndim != 3 or watched.tokens.shape[1] != every:
        return "its blocks do not take one token for each patch"
    for call in watched.calls:
        if strange := strange_value(call, patches, every):
            return f"its blocks are given {strange}"
    return None


def _check(teams: Teams, watched: Watched, generator: torch.Generator) -> None:
    """Compare with the model's own answer, in any order of the patches, and with plain torch."""
    count = teams.grid[0] * teams.grid[1]
    tokens = watched.tokens.float()
    both = torch.arange(2)
    ordered = torch.arange(count)
    shuffled = torch.stack([torch.randperm(count, generator=generator) for _ in both])
    whole = teams.features(tokens, both, ordered.expand(2, -1))
    _compare("with every patch", teams.logits(whole), watched.logits)
    mixed = teams.features(tokens, both, shuffled)
    _compare("in another order", teams.logits(mixed), watched.logits)
    # Of each token alone: a few of large values would hide the rest.
    whole, mixed = _normed(whole), _normed(mixed)
    back = mixed[:, teams.prefix :][both[:, None], shuffled.argsort(1)]
    _compare("in another order", back, whole[:, teams.prefix :])
    _compare("in another order", mixed[:, : teams.prefix], whole[:, : teams.prefix])
    half = shuffled[[1, 0, 1], : max(1, count // 2)].roll(1, 0)
    pictures = torch.tensor([1, 0, 1])
    some = teams.features(tokens, pictures, half)
    answers = teams.logits(some)
    for row, (picture, patches) in enumerate(zip(pictures, half, strict=True)):
        alone = plain_features(teams, tokens[int(picture)], patches)
        _compare("with half of them", _normed(some[row]), _normed(alone))
        _compare("with half of them", answers[row], teams.logits(alone[None])[0])


def _normed(features: Tensor) -> Tensor:
    return nn.functional.layer_norm(features, features.shape[-1:])


def plain_features(teams: Teams, tokens: Tensor, patches: Tensor) -> Tensor:
    """What `Teams.features` gives for one row, written apart from it: (prefix + n, W).

    Parameters
    ----------
    teams : of which the model is run.
    tokens : (T,W) of one picture.
    patches : (n,) int64.
    """
    kept = torch.cat([torch.arange(teams.prefix), patches + teams.prefix])

    def of_two(bias: Tensor) -> Tensor:
        return bias[..., kept, :][..., kept]

    x = tokens[kept].unsqueeze(0)
    with positions_taken(teams.model, of_two):
        for block, call in zip(teams.blocks, teams.calls, strict=True):
            x = run_block(block, x, for_team(call, lambda v: v[..., patches, :], of_two))
    return x[0]


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
