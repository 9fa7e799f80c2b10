"""The graphs of a model: the one that takes pictures and, where it can be, that of teams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitcx.export.graph.embedding import Site, WithEmbedding
from vitcx.export.graph.parity import Tolerance, check_parity
from vitcx.export.graph.team_parity import check_teams
from vitcx.export.graph.to_onnx import OUTPUTS, write_onnx, write_teams_onnx
from vitcx.export.graph.tokens import NoTeams, Teams, find_teams
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import MODEL_NAME, TOKENS

WITH_TOKENS = (*OUTPUTS, TOKENS)


def choose_teams(
    wrapped: WithEmbedding,
    shape: Sequence[int],
    wanted: bool | None,
    site: Site,
    say: Callable[[str], None],
) -> Teams | None:
    """The teams of a model, if it is to have a graph of them and can.

    Parameters
    ----------
    wrapped : the model; if it has teams, it gives its tokens from now on.
    shape : (channels, H, W) of an image.
    wanted : True: must have; False: must not; None: where the model allows.
    site : of its embedding.
    say : told in one line why it has none.

    Raises
    ------
    InputError
        If it must have and cannot.
    """
    if wanted is False:
        return None
    try:
        teams = find_teams(wrapped.model, shape, wrapped.scores, site)
    except NoTeams as reason:
        line = f"this model needs every patch in place ({reason}): teams are asked in pixels"
        if wanted:
            raise InputError(f"{line}; leave out --teams") from None
        say(line)
        return None
    wrapped.give_tokens(teams.blocks[0])
    return teams


def write_graphs(
    wrapped: WithEmbedding,
    teams: Teams | None,
    shape: Sequence[int],
    folder: Path,
    attention: str,
) -> None:
    """Write ``model.onnx``, and ``teams.onnx`` if there are any, to `folder`, which exists."""
    if teams is None:
        write_onnx(wrapped, shape, folder, attention)
        return
    write_onnx(wrapped, shape, folder, attention, WITH_TOKENS)
    write_teams_onnx(teams, teams.token_shape, teams.prefix, folder, attention)


def compare_graphs(
    folder: Path,
    wrapped: WithEmbedding,
    teams: Teams | None,
    preprocessing: Preprocessing,
    tolerance: Tolerance,
    pictures: Sequence[Path],
) -> dict[str, float]:
    """Compare the graphs in `folder` with torch: see `check_parity` and `check_teams`."""
    path = folder / MODEL_NAME
    if teams is None:
        return check_parity(path, wrapped, preprocessing, tolerance, pictures)
    return check_parity(
        path, wrapped, preprocessing, tolerance, pictures, WITH_TOKENS
    ) | check_teams(folder, wrapped, teams, preprocessing, tolerance)
