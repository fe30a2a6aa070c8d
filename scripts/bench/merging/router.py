"""Measure the router of merged policies on initial observations that are in no demonstration."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....errors import InputError
from ..metrics import Metrics


@dataclass(frozen=True)
class RouterDecision:
    """The router's decision for one observation.

    Attributes:
        suite: Suite of the observation.
        top_skill: Skill with the highest probability.
        accepted: Whether the router selected it; false if it abstained.
        confidence: Highest probability.
        margin: Difference of the two highest probabilities.
        distance: Distance to the skill, as a multiple of the usual one.
    """

    suite: str
    top_skill: str
    accepted: bool
    confidence: float
    margin: float
    distance: float


def bench_router(
    checkpoints: Sequence[Path], suites: Sequence[str], unknown_suite: str, states: int, plot_path: Path
) -> tuple[Metrics, list[str]]:
    """Route the first observation of every task from several initial states; plot confidence and distances.

    Args:
        checkpoints: Merged policies, whose skills have the names of their suites.
        suites: The suites of the skills.
        unknown_suite: A suite that no skill was trained on.
        states: Initial states of each task.
        plot_path: File of the plot.

    Returns:
        Metrics, and lines for the terminal.
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
    accuracy = round(len(correct) / len(known_decisions), 4)
    acted_right = round(sum(each.accepted for each in correct) / len(known_decisions), 4)
    acted_wrong = round(sum(each.top_skill != each.suite for each in accepted) / len(known_decisions), 4)
    abstention = round(sum(not each.accepted for each in foreign_decisions) / len(foreign_decisions), 4)
    known_distance = round(statistics.median(each.distance for each in known_decisions), 3)
    foreign_distance = round(statistics.median(each.distance for each in foreign_decisions), 3)
    metrics: Metrics = {
        "router_accuracy": accuracy,
        "router_acted_right": acted_right,
        "router_acted_wrong": acted_wrong,
        "router_observations": len(known_decisions),
        "abstention_on_foreign_suite": abstention,
        "foreign_observations": len(foreign_decisions),
        "margin_smallest_when_right": round(min(each.margin for each in correct), 4),
        "distance_median_known": known_distance,
        "distance_median_foreign": foreign_distance,
    }
    plot_router(known_decisions, foreign_decisions, plot_path)
    lines = [
        (
            f"router: the correct skill has the highest probability in {100 * accuracy:.2f} % of "
            f"{len(known_decisions)} first observations, and is selected in {100 * acted_right:.2f} %; "
            "a wrong one is selected in "
            f"{100 * acted_wrong:.2f} %"
        ),
        (
            f"{unknown_suite}, unknown to all skills: abstains in {100 * abstention:.1f} % of "
            f"{len(foreign_decisions)}; distances {foreign_distance} times the usual, known suites {known_distance}"
        ),
        f"plot: {plot_path}",
    ]
    return metrics, lines


def route_suite(checkpoint: Path, suite: str, states: int) -> list[RouterDecision]:
    """Route the first observations of all tasks of a suite.

    Args:
        checkpoint: A merged policy.
        suite: The suite.
        states: Initial states of each task.

    Raises:
        InputError: The policy is not merged.
    """
    import numpy as np
    import torch

    from ....policy.loading import load_policy
    from ....policy.merging.merged import MergedCore
    from ....sim import worlds
    from ....sim.rendering import choose_backend

    choose_backend()
    torch.set_num_threads(1)
    core = load_policy(checkpoint)
    if not isinstance(core, MergedCore):
        fix = "Give a folder that `saccade merge` wrote."
        raise InputError(str(checkpoint), got="a policy that is not merged", expected="a merged policy", fix=fix)
    family = worlds.find_family([suite])
    world = worlds.make_evaluation_world(family, core.contract, worlds.LiberoOptions())
    decisions = []
    for task in family.tasks(suite):
        env = world.environment(suite, task.name)
        for state in range(states):
            observation, info = env.reset(seed=state, options={"initial_state": state})
            views = np.stack([observation["pixels"][camera.name] for camera in core.contract.cameras])
            images = torch.from_numpy(views).permute(0, 3, 1, 2)[None]
            joints = torch.from_numpy(np.asarray(observation["agent_pos"], dtype=np.float32))[None]
            route = core.route(images, str(info["instruction"]), joints)
            best = max(range(len(core.skills)), key=route.probabilities.__getitem__)
            decisions.append(
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
    return decisions


def plot_router(
    known_decisions: Sequence[RouterDecision], foreign_decisions: Sequence[RouterDecision], path: Path
) -> None:
    """Plot the calibration of the router's confidence, and histograms of the distances by which it abstains."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    calibration, distances = figure.subplots(1, 2)
    confidence = np.array([each.confidence for each in known_decisions])
    correct = np.array([each.top_skill == each.suite for each in known_decisions])
    edges = np.quantile(confidence, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, 9)
    points = [
        (confidence[bins == decile].mean(), correct[bins == decile].mean())
        for decile in range(10)
        if (bins == decile).any()
    ]
    calibration.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    calibration.plot(*zip(*points, strict=True), "o-")
    low = min(0.9, min(min(point) for point in points) - 0.02)
    calibration.set(xlabel="confidence", ylabel="accuracy", xlim=(low, 1.005), ylim=(low, 1.005))
    calibration.set_title(f"calibration on {len(known_decisions)} first observations, deciles", fontsize=9)
    every = [[each.distance for each in group] for group in (known_decisions, foreign_decisions)]
    grid = np.logspace(np.log10(min(map(min, every)) * 0.9), np.log10(max(map(max, every)) * 1.1), 60)
    for group, label in zip(every, ("known suites", "unknown suite"), strict=True):
        distances.hist(group, bins=grid, alpha=0.6, label=label)
    distances.axvline(1.5, color="k", linewidth=0.8, linestyle="--", label="abstains above")
    distances.set(xscale="log", xlabel="distance, in multiples of the usual", ylabel="observations")
    distances.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
