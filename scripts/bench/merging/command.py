"""Merged policies beside their skills: success suite by suite, with every baseline, and what the router does."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....machine import usable_cores
from ....policy.pretrained.adaptation import EXPERT_PREFIX
from ....sim import worlds
from ...evaluate.command import evaluate
from ...evaluate.options import EvaluateConfig
from ...merge import MergeConfig, open_skills, stored_bytes, write
from ...merge import merge as merge_opened
from ..metrics import Metrics

MAIN_VARIANT = "main"
"""The variant that baselines are set beside, and that every seed is measured with."""


@dataclass(frozen=True)
class MergeBenchConfig:
    """Measure what merging costs: skills alone, merged by several methods, unmasked, with the right skill named, joint.

    Names of folders may hold {seed}. Every evaluation is kept below --folder: an interrupted measurement goes on where
    it was when the command is repeated.
    """

    skills: tuple[str, ...]
    """Folders of the skills, in the order of the suites: runs/spatial_{seed} runs/object_{seed} ..."""
    suites: tuple[str, ...] = ("desk_spatial", "desk_object", "desk_goal", "desk_long")
    """The suite of each skill."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the skills' trainings."""
    joint: str | None = None
    """Folder of a policy that was trained on all suites together."""
    foreign: str = "desk_memory"
    """Suite that no skill knows, to see whether the router abstains."""
    method: str = "ties"
    """Method of the merges without masks and of the expert's first blocks alone."""
    keep_blocks: int = 2
    """Last blocks of the expert that stay every skill's own."""
    others: tuple[str, ...] = ()
    """Methods, and kinds of masks, by which all changes are merged to compare: ties wudi mean/none emr."""
    others_seeds: int = 1
    """How many of the seeds, from the first on, are measured with those and with the baselines that merge; 0: none."""
    episodes: int = 5
    """Episodes of each task."""
    states: int = 50
    """Initial states of each task that the router is shown."""
    workers: int = usable_cores()
    """Worker processes."""
    folder: Path = Path("runs/bench_merge")
    """Where merged checkpoints and evaluations are kept."""
    out: Path | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        if len(self.skills) != len(self.suites) or len(self.skills) < 2:
            got = f"{len(self.skills)} skills and {len(self.suites)} suites"
            raise InputError("skills", got=got, expected="two or more, one for each suite", fix="Name them in order.")
        for name, least in (("episodes", 1), ("states", 1), ("workers", 1), ("others_seeds", 0)):
            if getattr(self, name) < least:
                fix = f"Raise --{name.replace('_', '-')}."
                raise InputError(name, got=getattr(self, name), expected=f"{least} or more", fix=fix)
        if not self.seeds:
            raise InputError("seeds", got="none", expected="one or more", fix="0 is usual.")
        worlds.find_family((*self.suites, self.foreign))


def bench_merge(config: MergeBenchConfig) -> tuple[Metrics, list[str]]:
    """Return the figures of all seeds, and a table for people."""
    from .router import bench_router

    with_baselines = config.seeds[: config.others_seeds]
    measured = [SeedEvaluation(config, seed, with_baselines=seed in with_baselines).rows() for seed in config.seeds]
    lines = table(config, measured)
    router, said = bench_router(
        [config.folder / f"{MAIN_VARIANT}_{seed}" for seed in config.seeds],
        config.suites, config.foreign, config.states, config.folder / "router.png",
    )  # fmt: skip
    metrics = success_metrics(config, measured) | router | size_metrics(config)
    return metrics, [*lines, *said]


class SeedEvaluation:
    """One seed's skills and all that is made of them, evaluated: every row the success of each suite.

    `with_baselines`: with every baseline and method, not only those of every seed.
    """

    def __init__(self, config: MergeBenchConfig, seed: int, *, with_baselines: bool) -> None:
        self._config, self._seed, self._with_baselines = config, seed, with_baselines

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return for every policy its results by suite, as `evaluate` gives them."""
        config, found = self._config, {}
        found["skills alone"] = {
            suite: self._evaluate_once(self._skill_folder(number), f"alone_{suite}", suite)
            for number, suite in enumerate(config.suites)
        }
        merged = self._merge_once(MAIN_VARIANT)
        found["merged"] = self._evaluate_all_suites(merged, MAIN_VARIANT)
        found["merged, the right skill named"] = {
            suite: self._evaluate_named_skill(merged, suite) for suite in config.suites
        }
        if config.joint is not None and (folder := Path(config.joint.format(seed=self._seed))).is_dir():
            found["trained on all suites together"] = self._evaluate_all_suites(folder, "joint")
        if config.keep_blocks > 0:
            none = self._merge_once("no_block", keep_blocks=0)
            found["merged, no block of the expert kept whole"] = self._evaluate_all_suites(none, "no_block")
        if self._with_baselines:
            expert = self._merge_once("expert", merge="expert", method=config.method)
            found["the expert's first blocks merged, with masks"] = self._evaluate_all_suites(expert, "expert")
            plain = self._merge_once("unmasked", merge="all", method=config.method, masks="none")
            found["merged without masks"] = self._evaluate_all_suites(plain, "unmasked")
            without_trunk_changes = self._merge_once("no_trunk", without_trunk_changes=True)
            found["merged, trunk and towers as in the beginning"] = self._evaluate_all_suites(
                without_trunk_changes, "no_trunk"
            )
            for other in config.others:
                method, _, masks = other.partition("/")
                folder = self._merge_once(other.replace("/", "_"), merge="all", method=method, masks=masks or None)
                found[f"all merged: {other}"] = self._evaluate_all_suites(folder, other.replace("/", "_"))
        return found

    def _evaluate_named_skill(self, merged: Path, suite: str) -> dict[str, Any]:
        """Return the results of the suite's own skill; where the router chose it in every episode, they are known."""
        from ....sim.evaluation.run_folder import read_evaluation

        routed = read_evaluation(self._evaluation_folder(f"{MAIN_VARIANT}_{suite}"))
        if all(record.skill == suite for record in routed.records):
            return self._evaluate_once(merged, f"{MAIN_VARIANT}_{suite}", suite)
        return self._evaluate_once(merged, f"oracle_{suite}", suite, skill=suite)

    def _evaluation_folder(self, name: str) -> Path:
        return self._config.folder / f"eval_{self._seed}" / name

    def _skill_folder(self, number: int) -> Path:
        return Path(self._config.skills[number].format(seed=self._seed))

    def _merge_once(
        self,
        name: str,
        *,
        merge: str = "nothing",
        method: str = "ties",
        masks: str | None = None,
        keep_blocks: int | None = None,
        without_trunk_changes: bool = False,
    ) -> Path:
        """Merge, unless that is done; with `without_trunk_changes` nothing but the expert changes with the skill."""
        config = self._config
        out = config.folder / f"{name}_{self._seed}"
        if out.is_dir():
            return out
        options = MergeConfig(
            skills=tuple(str(self._skill_folder(number)) for number in range(len(config.suites))),
            out=out,
            merge=merge,
            method=method,
            masks=masks,
            keep_blocks=config.keep_blocks if keep_blocks is None else keep_blocks,
            names=config.suites,
        )
        # Where everybody takes everything, the mean is what leaves the weights' size as it was.
        if masks == "none" and method in ("task_arithmetic", "consensus"):
            options = replace(options, scale=1 / len(config.suites))
        skills = open_skills(options)
        merged = merge_opened(options, skills)
        for key, tensor in merged.tensors.items():
            # A factor of which all steps are zero changes nothing.
            if without_trunk_changes and re.match(rf"factor\.\d+\.up_step\.(?!{EXPERT_PREFIX})", key):
                merged.tensors[key] = 0 * tensor
        write(options, skills, merged)
        return out

    def _evaluate_all_suites(self, folder: Path, name: str) -> dict[str, Any]:
        return {suite: self._evaluate_once(folder, f"{name}_{suite}", suite) for suite in self._config.suites}

    def _evaluate_once(self, folder: Path, name: str, suite: str, skill: str | None = None) -> dict[str, Any]:
        """Return the results of a policy on a suite: those of an earlier evaluation, or of one that runs now.

        `records` are its episodes.
        """
        from ....sim.evaluation.run_folder import RESULTS_FILE, read_evaluation
        from ....sim.json_files import read_json

        out = self._evaluation_folder(name)
        if not (out / RESULTS_FILE).is_file():
            print(f"{name}, seed {self._seed}:", flush=True)
            evaluate(
                EvaluateConfig(
                    checkpoint=str(folder),
                    suites=(suite,),
                    left_out="with",
                    episodes=self._config.episodes,
                    skill=skill,
                    videos=0,
                    workers=self._config.workers,
                    resume=out.is_dir(),
                    out=out,
                )
            )
        return {**read_json(out / RESULTS_FILE), "records": read_evaluation(out).records}


def success_counts(results: Mapping[str, Any]) -> tuple[int, int]:
    """Return a policy's successes on a suite, and the episodes."""
    return round(results["rate"] * results["episodes"]), results["episodes"]


def won_and_lost(config: MergeBenchConfig, measured: list[dict[str, dict[str, Any]]], name: str) -> tuple[int, int]:
    """Return how many episodes a policy won that the skills alone lost, and lost that they won."""
    from ....sim.evaluation.comparison import compare

    pairs = [
        compare(rows["skills alone"][suite]["records"], rows[name][suite]["records"])
        for rows in measured
        if name in rows
        for suite in config.suites
    ]
    return sum(pair.only_second for pair in pairs), sum(pair.only_first for pair in pairs)


def table(config: MergeBenchConfig, measured: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Return success by policy and suite, all seeds together, as lines for people.

    `p`: of McNemar's exact test against the skills alone, over the same episodes.
    """
    from ....sim.evaluation.comparison import mcnemar_p_value
    from ....sim.evaluation.statistics import wilson_interval

    names = list(dict.fromkeys(name for rows in measured for name in rows))
    width = max(map(len, names))
    lines = [
        f"{'success, %':<{width}}  "
        + "  ".join(f"{suite:>12}" for suite in config.suites)
        + "   all  95 % interval, episodes won and lost against the skills alone"
    ]
    for name in names:
        counts = {
            suite: [success_counts(rows[name][suite]) for rows in measured if name in rows] for suite in config.suites
        }
        cells, successes, episode_count = [], 0, 0
        for suite in config.suites:
            wins, runs = (sum(each[part] for each in counts[suite]) for part in (0, 1))
            cells.append(f"{100 * wins / runs:12.1f}")
            successes, episode_count = successes + wins, episode_count + runs
        low, high = wilson_interval(successes, episode_count)
        seeds = len(counts[config.suites[0]])
        won, lost = won_and_lost(config, measured, name)
        lines.append(
            f"{name:<{width}}  "
            + "  ".join(cells)
            + f"  {100 * successes / episode_count:5.1f}  {100 * low:.1f} to {100 * high:.1f}"
            f" of {episode_count}, {seeds} seed{'s' if seeds > 1 else ''}; +{won} -{lost}, "
            f"p = {mcnemar_p_value(lost, won):.2g}"
        )
    return lines


def success_metrics(config: MergeBenchConfig, measured: list[dict[str, dict[str, Any]]]) -> Metrics:
    """Return the figures of all seeds; a mean of suites, then of seeds."""
    from ....sim.evaluation.comparison import mcnemar_p_value

    def mean(name: str) -> float | None:
        rates = [
            statistics.mean(rows[name][suite]["rate"] for suite in config.suites) for rows in measured if name in rows
        ]
        return round(statistics.mean(rates), 4) if rates else None

    alone, merged = mean("skills alone"), mean("merged")
    won, lost = won_and_lost(config, measured, "merged")
    metrics: Metrics = {
        "skills_mean_success": alone,
        "merged_success": merged,
        "merged_over_skills": None if not alone or merged is None else round(merged / alone, 4),
        "merged_won_against_skills": won,
        "merged_lost_against_skills": lost,
        "merged_against_skills_p": round(mcnemar_p_value(lost, won), 4),
        "joint_success": mean("trained on all suites together"),
        "unmasked_success": mean("merged without masks"),
        "oracle_success": mean("merged, the right skill named"),
        "bare_trunk_success": mean("merged, trunk and towers as in the beginning"),
        "no_block_kept_success": mean("merged, no block of the expert kept whole"),
        "expert_merged_success": mean("the expert's first blocks merged, with masks"),
        "seeds": len(measured),
        "episodes_of_a_policy": sum(measured[0]["merged"][suite]["episodes"] for suite in config.suites),
    }
    for rows, seed in zip(measured, config.seeds, strict=True):
        kinds = (("skills alone", "skill"), ("merged", "merged"), ("trained on all suites together", "joint"))
        for name, key in kinds:
            if name in rows:
                metrics |= {f"{key}_{suite}_{seed}": round(rows[name][suite]["rate"], 4) for suite in config.suites}
    for other in config.others:
        key = f"method_{other.replace('/', '_')}"
        metrics[key] = mean(f"all merged: {other}")
        for suite in config.suites:
            rates = [rows[f"all merged: {other}"][suite]["rate"] for rows in measured if f"all merged: {other}" in rows]
            if rates:
                metrics[f"{key}_{suite}"] = round(statistics.mean(rates), 4)
    return metrics


def size_metrics(config: MergeBenchConfig) -> Metrics:
    """Return what the first merge takes on the disk, beside its skills, and against what it may take.

    The bound is one skill's checkpoint and a twentieth of the trunk for each skill; masks and what is kept of every
    skill come on top.
    """
    from ....policy.checkpoint.folder import MODEL_FILE, read_checkpoint

    seed = config.seeds[0]
    folder = config.folder / f"{MAIN_VARIANT}_{seed}"
    tensors = read_checkpoint(folder).tensors
    stored = stored_bytes(tensors)
    skills = [Path(name.format(seed=seed)) / "checkpoint" / MODEL_FILE for name in config.skills]
    each = [path.stat().st_size for path in skills if path.is_file()]
    trunk = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith("model.trunk."))
    if len(each) != len(skills):
        return {}
    shared = stored["beginning"] + stored["change"] + stored["factors"] + stored["router"]
    return {
        "bytes_over_separate": round((folder / MODEL_FILE).stat().st_size / sum(each), 4),
        "bytes_shared_over_bound": round(shared / (min(each) + 0.05 * trunk * len(each)), 4),
    }
