"""What `vitcx export` says of the bundle that it made."""

from __future__ import annotations

from vitcx.commands.terminal import say
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.manifest import TARGET_KINDS, Manifest
from vitcx.runtime.precision_limits import precision_problem


def tell_of_bundle(bundle: Bundle, *, teams_asked: bool) -> None:
    """Print what it is, how near it is to the model, and what its precision costs.

    `teams_asked`: whether the user said if it is to have a graph of teams.
    """
    m = bundle.manifest
    megabytes = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    say(
        f"{bundle.path}: {m.model_name}, {m.input_size[0]}x{m.input_size[1]}, "
        f"{m.num_classes} {_targets(m)}, embedding {m.channels}x{m.grid[0]}x{m.grid[1]} "
        f"at {m.layer_path}, {megabytes:.1f} MB"
    )
    say(f"weights: {m.source}")
    if m.target_kind != "class":
        say(f"a score is {TARGET_KINDS[m.target_kind]}")
    origin = "torch" if "torch" in m.versions else "the ONNX file"
    say(
        f"against {origin} on {m.parity['images']:.0f} images: {_outputs(m)} within "
        f"{m.parity['probabilities_max_abs']:.1e}, embedding within "
        f"{m.parity['embedding_max_abs']:.1e} (rms {m.parity['embedding_rms_relative']:.1e} "
        "of its own)"
    )
    if not bundle.has_teams and not teams_asked:
        say("this model needs every patch in place: teams are asked in pixels")
    if figures := m.precision_figures:
        say(
            f"{m.precision} against fp32 on {figures['images']:.0f} images, of which "
            f"{figures['photographs']:.0f} photographs: the same likeliest class in "
            f"{figures['top1_agreement']:.0%}, rank correlation of the maps "
            f"{figures['rank_correlation_median']:.3f} in the median "
            f"({figures['rank_correlation_min']:.3f} at the least), deletion "
            f"{figures['deletion_change']:+.4f}, insertion {figures['insertion_change']:+.4f}"
        )
        if not figures["photographs"]:
            say("give photographs with --check-image: drawn scenes say less")
    if problem := precision_problem(m):
        say(f"vitcx will refuse it without --allow-imprecise: {problem}")


def _targets(m: Manifest) -> str:
    """The manifest's targets in the plural, or the singular for one."""
    name = {"class": "classes", "similarity": "similarities"}.get(
        m.target_kind, f"{m.target_kind}s"
    )
    return name if m.num_classes != 1 else m.target_kind


def _outputs(m: Manifest) -> str:
    return "probabilities" if m.scores_are_probabilities else "scores"
