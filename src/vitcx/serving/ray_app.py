"""The server on Ray Serve: the same FastAPI application, with replicas placed and scaled by Ray.

    serve run vitcx.serving.ray_app:build bundle=/models/deit num_gpus=1

Each replica loads the bundle once and packs the requests that reach it; what one replica has no
room for, it refuses with 429, as the single server does.
"""

from __future__ import annotations

import os
from typing import Any

from vitcx.runtime.errors import MissingExtraError


def build(arguments: dict[str, Any]) -> Any:
    """A Ray Serve application.

    Parameters
    ----------
    arguments : ``bundle``, ``engine``, ``threads``, ``batch_size`` as for `vitcx.load`; ``queue``,
        of each replica; ``num_gpus`` and ``num_cpus`` of each; ``min_replicas``, ``max_replicas``;
        ``token`` and ``preset``; without them, ``VITCX_TOKEN`` and ``VITCX_PRESET`` of the process
        that builds. Values may be text, as `serve run` gives them.
    """
    try:
        from ray import serve
    except ImportError:
        raise MissingExtraError("'vitcx.serving.ray_app'", "ray", "ray") from None
    queue = int(arguments.get("queue", 64))
    token = arguments.get("token") or os.environ.get("VITCX_TOKEN")
    preset = arguments.get("preset") or os.environ.get("VITCX_PRESET") or None

    def make() -> Any:
        from vitcx.runtime.explainer import load
        from vitcx.serving.app import make_app
        from vitcx.serving.limits import Limits

        threads, rows = (int(arguments.get(k) or 0) or None for k in ("threads", "batch_size"))
        bundle, engine = arguments.get("bundle", "demo"), arguments.get("engine", "auto")
        explainer = load(bundle, engine, threads, rows)
        # Ray's proxy has had the request: whose names it answers to is a matter of that.
        return make_app(explainer, Limits(queue=queue), token, ["*"], preset)

    @serve.deployment(
        ray_actor_options={
            "num_cpus": float(arguments.get("num_cpus", 1)),
            "num_gpus": float(arguments.get("num_gpus", 0)),
        },
        autoscaling_config={
            "min_replicas": int(arguments.get("min_replicas", 1)),
            "max_replicas": int(arguments.get("max_replicas", 1)),
            # Eight clients fill the batches of one engine; more of them are worth another.
            "target_ongoing_requests": 8,
        },
        # Ray would otherwise hold back what the replica is there to pack, or to refuse.
        max_ongoing_requests=queue + 64,
    )
    @serve.ingress(make)
    class Explainers:
        """One replica."""

    deployment: Any = Explainers
    return deployment.bind()
