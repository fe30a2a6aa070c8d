"""What a merged policy's router does with first observations that no demonstration began with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..metrics import Metrics


@dataclass(frozen=True)
class RouterDecision:
    """One observation: its suite, the `top_skill` skill, whether the router let it act, and how sure it was."""

    suite: str
    top_skill: str
    accepted: bool
    confidence: float
    margin: float
    distance: float


def bench_router(
    checkpoints: Sequence[Path], suites: Sequence[str], unknown_suite: str, states: int, plot_path: Path
) -> tuple[Metrics, list[str]]:
    """Show merged policies the first observation of `states` starts of every task; return figures and lines.

    The skills are called after their suites. `unknown_suite` is a suite that none of them knows. A picture of confidence and
    distances is written.
    """
    known_decisions: list[RouterDecision] = []
    foreign_decisions: list[RouterDecision] = []
    for checkpoint in checkpoints:
        for suite in (*suites, unknown_suite):
            (foreign_decisions if suite == unknown_suite else known_decisions).extend(
                route_suite(checkpoint, suite, states)
            )
    correct = [each for each in known_decisions if each.top_skill == each.suite]
    accepted = [each for each in known_decisions if each.accepted]
    metrics: Metrics = {
        "router_accuracy": round(len(correct) / len(known_decisions), 4),
        "router_acted_right": round(sum(each.accepted for each in correct) / len(known_decisions), 4),
        "router_acted_wrong": round(sum(each.top_skill != each.suite for each in accepted) / len(known_decisions), 4),
        "router_observations": len(known_decisions),
        "abstention_on_foreign_suite": round(
            sum(not each.accepted for each in foreign_decisions) / len(foreign_decisions), 4
        ),
        "foreign_observations": len(foreign_decisions),
        "margin_smallest_when_right": round(min(each.margin for each in correct), 4),
        "distance_median_known": round(statistics.median(each.distance for each in known_decisions), 3),
        "distance_median_foreign": round(statistics.median(each.distance for each in foreign_decisions), 3),
    }
    plot_router(known_decisions, foreign_decisions, plot_path)
    lines = [
        f"router: the right skill is the likeliest in {100 * metrics['router_accuracy']:.2f} % of {len(known_decisions)} first "
        f"observations, and acts in {100 * metrics['router_acted_right']:.2f} %; another acts in "
        f"{100 * metrics['router_acted_wrong']:.2f} %",
        f"{unknown_suite}, which none knows: abstains in {100 * metrics['abstention_on_foreign_suite']:.1f} % of "
        f"{len(foreign_decisions)}; distances {metrics['distance_median_foreign']} times the usual, known suites "
        f"{metrics['distance_median_known']}",
        f"picture: {plot_path}",
    ]
    return metrics, lines


def route_suite(checkpoint: Path, suite: str, states: int) -> list[RouterDecision]:
    """Return what the router makes of the first observations of all tasks of a suite."""
    import numpy as np
    import torch

    from ....policy.loading import load_policy
    from ....sim import worlds
    from ....sim.rendering import choose_backend

    choose_backend()
    torch.set_num_threads(1)
    core = load_policy(checkpoint)
    family = worlds.find_family([suite])
    world = worlds.make_evaluation_world(family, core.contract, worlds.LiberoOptions())
    found = []
    for task in family.tasks(suite):
        env = world.environment(suite, task.name)
        for state in range(states):
            observation, info = env.reset(seed=state, options={"initial_state": state})
            views = np.stack([observation["pixels"][camera.name] for camera in core.contract.cameras])
            images = torch.from_numpy(views).permute(0, 3, 1, 2)[None]
            joints = torch.from_numpy(np.asarray(observation["agent_pos"], dtype=np.float32))[None]
            route = core.route(images, str(info["instruction"]), joints)
            best = max(range(len(core.skills)), key=route.probabilities.__getitem__)
            found.append(
                RouterDecision(
                    suite,
                    core.skills[best],
                    route.skill is not None,
                    max(route.probabilities),
                    route.margin,
                    route.distance,
                )
            )
        env.close()
    return found


def plot_router(
    known_decisions: Sequence[RouterDecision], foreign_decisions: Sequence[RouterDecision], path: Path
) -> None:
    """Draw the calibration of the router's confidence, and the distances by which it abstains."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    calibration, distances = figure.subplots(1, 2)
    confidence = np.array([each.confidence for each in known_decisions])
    correct = np.array([each.top_skill == each.suite for each in known_decisions])
    edges = np.quantile(confidence, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, 9)
    points = [
        (confidence[bins == place].mean(), correct[bins == place].mean())
        for place in range(10)
        if (bins == place).any()
    ]
    calibration.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    calibration.plot(*zip(*points, strict=True), "o-")
    low = min(0.9, min(min(point) for point in points) - 0.02)
    calibration.set(
        xlabel="how sure the router is", ylabel="how often it is right", xlim=(low, 1.005), ylim=(low, 1.005)
    )
    calibration.set_title(f"calibration on {len(known_decisions)} first observations, tenths of equal size", fontsize=9)
    every = [[each.distance for each in group] for group in (known_decisions, foreign_decisions)]
    grid = np.logspace(np.log10(min(map(min, every)) * 0.9), np.log10(max(map(max, every)) * 1.1), 60)
    for group, label in zip(every, ("suites that it knows", "a suite that it does not"), strict=True):
        distances.hist(group, bins=grid, alpha=0.6, label=label)
    distances.axvline(1.5, color="k", linewidth=0.8, linestyle="--", label="beyond it abstains")
    distances.set(xscale="log", xlabel="distance, in multiples of the usual", ylabel="observations")
    distances.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
