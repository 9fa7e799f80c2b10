"""Train the embedded model: ``python -m tools.demo_model.train --out DIR``.

Two heads learn side by side: the class token's, which is kept, and one that names the object under
every patch, which is thrown away. The second teaches the patches what they show from the first
minute on, without which a transformer this small takes hours. Training starts on cut-outs of 8×8
patches, which cost less than half of a whole scene, and goes on with whole scenes.

The folder gets ``demo.safetensors`` (the weights), ``training.json`` (what was run and
how good it got) and ``checkpoint.pt``, from which the same command goes on if it was interrupted.
It may go on with other settings: the report says which were in force from which step on.

On a machine that is busy with other things, set ``OMP_WAIT_POLICY=PASSIVE``: threads that wait in
a loop for one that has no core cost more than half of the speed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.demo_model import model as demo_model
from tools.demo_model.data import CLASSES, Batch, ScenePool, fresh, make_batch
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED

#: Scenes for a look at progress; between those of training and the fresh ones.
_VALIDATION_SEED = 900_000


@dataclass(frozen=True)
class Config:
    """What a run is made of. Shares are of the run's wall-clock time."""

    minutes: float = 55.0
    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 1.3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 400
    patch_loss: float = 1.0
    cutout_share: float = 0.58
    cutout_grid: int = 8
    occluded_cutouts: float = 0.25
    occluded_scenes: float = 0.5
    pool_size: int = 40_000
    first_scenes: int = 8_000
    renew_every: int = 128
    renew_scenes: int = 1_500
    evaluation_scenes: int = 2_000


QUICK = Config(
    minutes=0.2, pool_size=1_000, first_scenes=400, renew_scenes=100, evaluation_scenes=100
)


class Trainer:
    """Model, optimiser and scenes of one run."""

    def __init__(self, config: Config, out: Path, threads: int) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(threads)
        self.config, self.out = config, out
        self.model: Any = demo_model.build()
        self.patch_head = nn.Linear(demo_model.WIDTH, CLASSES + 1)
        self.optimiser = self._optimiser()
        self.step, self.images, self.spent, self.cpu = 0, 0, 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        first_seed = self._resume()
        if not self.history or self.history[-1]["config"] != asdict(config):
            self.history.append(
                {"from_step": self.step, "from_second": self.spent, "config": asdict(config)}
            )
        self.pool = ScenePool(config.pool_size, threads, first_seed)
        self.rng = np.random.default_rng((config.seed, self.step))

    def _optimiser(self) -> torch.optim.AdamW:
        named = [*self.model.named_parameters(), *self.patch_head.named_parameters()]
        plain = [p for n, p in named if p.ndim < 2 or "embed" in n or "token" in n]
        decayed = [p for n, p in named if not (p.ndim < 2 or "embed" in n or "token" in n)]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.98))

    # ---- one step -------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, C) and patch logits (B, h·w, C + 1), for cut-outs as for scenes."""
        model, grid = self.model, batch.images.shape[-1] // demo_model.PATCH
        offsets = torch.arange(grid)
        rows, columns = (batch.corner[:, axis, None] + offsets for axis in (0, 1))
        where = rows[:, :, None] * demo_model.GRID + columns[:, None, :]
        patches = model.patch_embed.proj(batch.images).flatten(2).transpose(1, 2)
        patches = patches + model.pos_embed[0, 1:][where.flatten(1)]
        token = (model.cls_token + model.pos_embed[:, :1]).expand(len(patches), -1, -1)
        features = model.norm(model.blocks(torch.cat([token, patches], dim=1)))
        return model.head(features[:, 0]), self.patch_head(features[:, 1:])

    def train_step(self, progress: float) -> tuple[float, float]:
        config = self.config
        cutouts = progress < config.cutout_share
        drawn = self.pool.sample(config.batch_size, self.rng)
        batch = make_batch(
            drawn,
            self.rng,
            grid=config.cutout_grid if cutouts else demo_model.GRID,
            patch=demo_model.PATCH,
            occluded=config.occluded_cutouts if cutouts else config.occluded_scenes,
        )
        rate = config.learning_rate * min((self.step + 1) / config.warmup_steps, 1.0)
        rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = rate

        logits, patch_logits = self.forward(batch)
        loss = nn.functional.cross_entropy(logits, batch.target)
        # Most patches show no object; without more weight for the others they are learned late.
        weight = 0.3 + (1 - batch.patches[..., -1])
        per_patch = -(batch.patches * patch_logits.log_softmax(-1)).sum(-1)
        patch_loss = (weight * per_patch).sum() / weight.sum()
        self.optimiser.zero_grad(set_to_none=True)
        (loss + config.patch_loss * patch_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.patch_head.parameters()], 1.0)
        self.optimiser.step()

        self.step, self.images = self.step + 1, self.images + len(drawn)
        return float(loss.detach()), float(patch_loss.detach())

    # ---- the run --------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        # New settings start a schedule of their own, over the time that is left.
        start, budget = self.history[-1]["from_second"], self.config.minutes * 60
        config, left = self.config, max(budget - start, 1e-6)
        began, cpu_began, earlier, cpu_earlier = time.monotonic(), _cpu(), self.spent, self.cpu
        saved = shown = began
        self.pool.renew(config.first_scenes)
        recent: list[tuple[float, float]] = []
        while self.spent < budget:
            if self.step % config.renew_every == 0:
                self.pool.renew(config.renew_scenes)
            recent.append(self.train_step((self.spent - start) / left))
            now = time.monotonic()
            self.spent, self.cpu = earlier + now - began, cpu_earlier + _cpu() - cpu_began
            if now - shown > 20:
                loss, patch_loss = np.mean(recent, axis=0)
                print(
                    f"{self.spent / 60:5.1f}/{config.minutes:g} min  step {self.step:5d}  "
                    f"images {self.images:7d}  loss {loss:.3f}  patches {patch_loss:.3f}",
                    flush=True,
                )
                recent, shown = [], now
            if now - saved > 180:
                self.save()
                one, two = self.accuracy(_VALIDATION_SEED, 300)
                print(f"   saved; one object {one:.3f}, both of two {two:.3f}", flush=True)
                saved = now
        self.save()
        self.pool.close()
        self.cpu = cpu_earlier + _cpu() - cpu_began
        report = self._report()
        (self.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
        return report

    def accuracy(self, first_seed: int, scenes: int) -> tuple[float, float]:
        """Top-1 with one object, and both objects among the top 2 with two."""
        hits = [0, 0]
        self.model.eval()
        with torch.inference_mode():
            for objects in (1, 2):
                for images, classes in fresh(first_seed, scenes, objects):
                    top = self.model(images).topk(objects).indices.tolist()
                    pairs = zip(top, classes, strict=True)
                    hits[objects - 1] += sum(set(t) == set(c) for t, c in pairs)
        self.model.train()
        return hits[0] / scenes, hits[1] / scenes

    def _report(self) -> dict[str, Any]:
        scenes = self.config.evaluation_scenes
        one, two = self.accuracy(FIRST_FRESH_SEED, scenes)
        return {
            "history": self.history,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "steps": self.step,
            "images": self.images,
            "scenes_drawn": self.pool.next_seed,
            "wall_seconds": round(self.spent, 1),
            "cpu_seconds": round(self.cpu, 1),
            "fresh_scenes": {
                "first_seed": FIRST_FRESH_SEED,
                "count": scenes,
                "one_object_top1": one,
                "two_objects_both_in_top2": two,
            },
        }

    # ---- saving and going on --------------------------------------------------------------

    def save(self) -> None:
        from safetensors.torch import save_file

        save_file(self.model.state_dict(), self.out / "demo.safetensors")
        state = {
            "model": self.model.state_dict(),
            "patch_head": self.patch_head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "counts": [self.step, self.images, self.pool.next_seed],
            "clocks": [self.spent, self.cpu],
        }
        part = self.out / "checkpoint.pt.part"
        torch.save(state, part)
        part.replace(self.out / "checkpoint.pt")

    def _resume(self) -> int:
        """Take up the checkpoint if there is one; return the first seed to draw."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        self.history = state["history"]
        self.model.load_state_dict(state["model"])
        self.patch_head.load_state_dict(state["patch_head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.images, next_seed = state["counts"]
        self.spent, self.cpu = state["clocks"]
        print(f"going on from step {self.step}, {self.spent / 60:.1f} min in", flush=True)
        return int(next_seed)


def _cpu() -> float:
    """Seconds of processor time of this process; the scene makers count once they have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and report")
    parser.add_argument("--minutes", type=float, default=Config.minutes, help="wall-clock time")
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--threads", type=int, default=2)
    for name in ("learning_rate", "cutout_share", "occluded_cutouts", "occluded_scenes"):
        flag, default = f"--{name.replace('_', '-')}", getattr(Config, name)
        parser.add_argument(flag, type=float, default=default, help=f"default {default:g}")
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    chosen = {k: v for k, v in vars(arguments).items() if k in Config.__dataclass_fields__}
    config = QUICK if arguments.quick else Config(**chosen)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(Trainer(config, arguments.out, arguments.threads).run(), indent=2))


if __name__ == "__main__":
    main()
