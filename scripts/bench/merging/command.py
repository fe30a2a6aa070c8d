"""`saccade bench merge`: success of merged policies, their skills and baselines on each suite, and the router test."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from ....errors import InputError
from ....machine import usable_cores
from ....policy.pretrained.adaptation import EXPERT_PREFIX
from ....ranges import require_at_least
from ....sim import worlds
from ...evaluate.command import evaluate
from ...evaluate.options import EvaluateConfig
from ...merge import MaskKind, MergeConfig, MethodName, open_skills, stored_bytes, write
from ...merge import merge as merge_opened
from ..metrics import Metrics

type Rows = dict[str, dict[str, dict[str, Any]]]
"""Results of one seed by policy and suite."""

MAIN_VARIANT = "main"
"""Name of the merge that is measured for every seed; the baselines are compared with it."""


@dataclass(frozen=True)
class MergeBenchConfig:
    """Measure the success rate after merging, and that of baselines.

    The baselines are single skills, several merge methods, no masks, an oracle router, and a jointly trained policy.
    Folder names may contain {seed}. Every evaluation is kept in --folder: repeat the command to continue an interrupted
    measurement.
    """

    skills: tuple[str, ...]
    """Training folders of the skills, in the order of the suites: runs/spatial_{seed} runs/object_{seed} ..."""
    suites: tuple[str, ...] = ("desk_spatial", "desk_object", "desk_goal", "desk_long")
    """The suite of each skill."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds of the skills."""
    joint: str | None = None
    """Folder of a policy that was trained on all suites jointly."""
    foreign: str = "desk_memory"
    """Suite that no skill was trained on, to test whether the router abstains."""
    method: MethodName = "ties"
    """Merge method of the baselines without masks and with merged expert blocks."""
    keep_blocks: int = 2
    """Last expert blocks that are not merged and are kept per skill."""
    others: tuple[str, ...] = ()
    """Merge methods to compare, as METHOD or METHOD/MASK: ties wudi mean/none emr."""
    others_seeds: int = 1
    """Number of seeds, from the first, for which --others and the merge baselines are measured; 0 for none."""
    episodes: int = 5
    """Episodes of each task."""
    states: int = 50
    """Initial states of each task for the router test."""
    workers: int = usable_cores()
    """Worker processes."""
    folder: Path = Path("runs/bench_merge")
    """Folder of merged checkpoints and evaluations."""
    out: Path | None = None
    """JSON file for the metrics."""

    def __post_init__(self) -> None:
        if len(self.skills) != len(self.suites) or len(self.skills) < 2:
            got = f"{len(self.skills)} skills and {len(self.suites)} suites"
            fix = "Give one skill for each suite, in the same order."
            raise InputError("skills", got=got, expected="two or more, one for each suite", fix=fix)
        require_at_least(self, 1, "episodes", "states", "workers", option=True)
        require_at_least(self, 0, "others_seeds", option=True)
        if not self.seeds:
            raise InputError("seeds", got="none", expected="one or more", fix="Give one seed, for example --seeds 0.")
        worlds.find_family((*self.suites, self.foreign))


def bench_merge(config: MergeBenchConfig) -> tuple[Metrics, list[str]]:
    """Run the measurement and return the metrics of all seeds, and a table for the terminal."""
    from .router import bench_router

    with_baselines = config.seeds[: config.others_seeds]
    measured = [SeedEvaluation(config, seed, with_baselines=seed in with_baselines).rows() for seed in config.seeds]
    lines = success_table(config, measured)
    router_metrics, router_lines = bench_router(
        [config.folder / f"{MAIN_VARIANT}_{seed}" for seed in config.seeds],
        config.suites, config.foreign, config.states, config.folder / "router.png",
    )  # fmt: skip
    metrics = {**success_metrics(config, measured), **router_metrics, **size_metrics(config)}
    return metrics, [*lines, *router_lines]


class SeedEvaluation:
    """Evaluates the skills of one seed, and the policies that are merged from them, on every suite."""

    def __init__(self, config: MergeBenchConfig, seed: int, *, with_baselines: bool) -> None:
        """Prepare the evaluation of one seed.

        Args:
            config: Options of the command.
            seed: Training seed of the skills.
            with_baselines: Evaluate all baselines and methods, not only those that every seed has.
        """
        self._config, self._seed, self._with_baselines = config, seed, with_baselines

    def rows(self) -> Rows:
        """Return the results of `evaluate` by policy and suite."""
        config = self._config
        found: Rows = {}
        found["single skills"] = {
            suite: self._evaluate_once(self._skill_folder(number), f"alone_{suite}", suite)
            for number, suite in enumerate(config.suites)
        }
        merged = self._merge_once(MAIN_VARIANT)
        found["merged"] = self._evaluate_all_suites(merged, MAIN_VARIANT)
        found["merged, oracle router"] = {suite: self._evaluate_named_skill(merged, suite) for suite in config.suites}
        if config.joint is not None and (folder := Path(config.joint.format(seed=self._seed))).is_dir():
            found["trained on all suites jointly"] = self._evaluate_all_suites(folder, "joint")
        if config.keep_blocks > 0:
            none = self._merge_once("no_block", keep_blocks=0)
            found["merged, no expert block kept"] = self._evaluate_all_suites(none, "no_block")
        if self._with_baselines:
            expert = self._merge_once("expert", merge="expert", method=config.method)
            found["first expert blocks merged, with masks"] = self._evaluate_all_suites(expert, "expert")
            plain = self._merge_once("unmasked", merge="all", method=config.method, masks="none")
            found["merged without masks"] = self._evaluate_all_suites(plain, "unmasked")
            without_trunk_changes = self._merge_once("no_trunk", without_trunk_changes=True)
            found["merged, base trunk and towers"] = self._evaluate_all_suites(without_trunk_changes, "no_trunk")
            for other in config.others:
                method, _, masks = other.partition("/")
                # `MergeConfig` checks both names.
                folder = self._merge_once(
                    other.replace("/", "_"),
                    merge="all",
                    method=cast("MethodName", method),
                    masks=cast("MaskKind | None", masks or None),
                )
                found[f"all merged: {other}"] = self._evaluate_all_suites(folder, other.replace("/", "_"))
        return found

    def _evaluate_named_skill(self, merged: Path, suite: str) -> dict[str, Any]:
        """Return the results with the suite's skill; they are known if the router selected it in every episode."""
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
        merge: Literal["nothing", "expert", "all"] = "nothing",
        method: MethodName = "ties",
        masks: MaskKind | None = None,
        keep_blocks: int | None = None,
        without_trunk_changes: bool = False,
    ) -> Path:
        """Merge unless it is done already; with `without_trunk_changes` a skill changes only the expert."""
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
        # Without masks, the mean keeps the scale of the changes.
        if masks == "none" and method in ("task_arithmetic", "consensus"):
            options = replace(options, scale=1 / len(config.suites))
        skills = open_skills(options)
        merged = merge_opened(options, skills)
        for key, tensor in merged.tensors.items():
            # Factors whose step sizes are all zero change nothing.
            if without_trunk_changes and re.match(rf"factor\.\d+\.up_step\.(?!{EXPERT_PREFIX})", key):
                merged.tensors[key] = 0 * tensor
        write(options, skills, merged)
        return out

    def _evaluate_all_suites(self, folder: Path, name: str) -> dict[str, Any]:
        return {suite: self._evaluate_once(folder, f"{name}_{suite}", suite) for suite in self._config.suites}

    def _evaluate_once(self, folder: Path, name: str, suite: str, skill: str | None = None) -> dict[str, Any]:
        """Return the results and episode `records` of a policy on a suite; earlier results are not measured again."""
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
    """Return the number of successes and of episodes in the results of a suite."""
    return round(results["rate"] * results["episodes"]), results["episodes"]


def won_and_lost(config: MergeBenchConfig, measured: Sequence[Rows], name: str) -> tuple[int, int]:
    """Return how many episodes the policy `name` won that the single skills lost, and lost that they won."""
    from ....sim.evaluation.comparison import compare

    pairs = [
        compare(rows["single skills"][suite]["records"], rows[name][suite]["records"])
        for rows in measured
        if name in rows
        for suite in config.suites
    ]
    return sum(pair.only_second for pair in pairs), sum(pair.only_first for pair in pairs)


def success_table(config: MergeBenchConfig, measured: Sequence[Rows]) -> list[str]:
    """Return a table of the success rates by policy and suite, over all seeds.

    `p` is that of McNemar's exact test against the single skills, on the same episodes.
    """
    from ....sim.evaluation.comparison import mcnemar_p_value
    from ....sim.evaluation.statistics import wilson_interval

    names = list(dict.fromkeys(name for rows in measured for name in rows))
    width = max(map(len, names))
    lines = [
        f"{'success, %':<{width}}  "
        + "  ".join(f"{suite:>12}" for suite in config.suites)
        + "   all  95 % interval, episodes won and lost against the single skills"
    ]
    for name in names:
        counts = {
            suite: [success_counts(rows[name][suite]) for rows in measured if name in rows] for suite in config.suites
        }
        cells, successes, episode_count = [], 0, 0
        for suite in config.suites:
            wins, episodes = (sum(each[part] for each in counts[suite]) for part in (0, 1))
            cells.append(f"{100 * wins / episodes:12.1f}")
            successes, episode_count = successes + wins, episode_count + episodes
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


def success_metrics(config: MergeBenchConfig, measured: Sequence[Rows]) -> Metrics:
    """Return the metrics of all seeds: means over suites, then over seeds."""
    from ....sim.evaluation.comparison import mcnemar_p_value

    def mean(name: str) -> float | None:
        rates = [
            statistics.mean(rows[name][suite]["rate"] for suite in config.suites) for rows in measured if name in rows
        ]
        return round(statistics.mean(rates), 4) if rates else None

    alone, merged = mean("single skills"), mean("merged")
    won, lost = won_and_lost(config, measured, "merged")
    metrics: Metrics = {
        "skills_mean_success": alone,
        "merged_success": merged,
        "merged_over_skills": None if not alone or merged is None else round(merged / alone, 4),
        "merged_won_against_skills": won,
        "merged_lost_against_skills": lost,
        "merged_against_skills_p": round(mcnemar_p_value(lost, won), 4),
        "joint_success": mean("trained on all suites jointly"),
        "unmasked_success": mean("merged without masks"),
        "oracle_success": mean("merged, oracle router"),
        "bare_trunk_success": mean("merged, base trunk and towers"),
        "no_block_kept_success": mean("merged, no expert block kept"),
        "expert_merged_success": mean("first expert blocks merged, with masks"),
        "seeds": len(measured),
        "episodes_of_a_policy": sum(measured[0]["merged"][suite]["episodes"] for suite in config.suites),
    }
    for rows, seed in zip(measured, config.seeds, strict=True):
        kinds = (("single skills", "skill"), ("merged", "merged"), ("trained on all suites jointly", "joint"))
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
    """Return the size of the first merge relative to that of its skills, and to a bound.

    The bound is the size of one skill's checkpoint, and 5 % of the trunk for each skill. Masks and tensors that each
    skill keeps do not count.
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
    shared = stored["base"] + stored["change"] + stored["factors"] + stored["router"]
    return {
        "bytes_over_separate": round((folder / MODEL_FILE).stat().st_size / sum(each), 4),
        "bytes_shared_over_bound": round(shared / (min(each) + 0.05 * trunk * len(each)), 4),
    }
