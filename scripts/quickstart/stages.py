"""The stages of a quickstart: what each runs, where its output is, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WorldError
from ...policy.training_defaults import LEARNING_RATE
from .options import EVALUATION_NAMES, SUITE, known_tasks, new_tasks
from .stopwatch import Stage

if TYPE_CHECKING:
    from ..collect import CollectConfig
    from ..evaluate.options import EvaluateConfig
    from ..train.options import TrainConfig
    from .options import QuickstartConfig


SECONDS_PER_DEMONSTRATION, SECONDS_PER_SAMPLE, SECONDS_PER_EPISODE, SECONDS_TO_START = 0.40, 0.018, 1.8, 15.0
"""Expected times on the two cores for which the defaults were chosen; measured times of earlier stages correct them."""


@dataclass(frozen=True)
class Quickstart:
    """One quickstart: the options of its stages, and their outputs below --out.

    Attributes:
        config: The options of the command.
    """

    config: QuickstartConfig

    @property
    def uses_rehearsal(self) -> bool:
        """Whether demonstrations of known tasks are used against forgetting."""
        return self.config.rehearsal > 0 and not self.config.from_scratch

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained checkpoint."""
        return self.config.out / "training" / "checkpoint"

    def collection(self, *, rehearsal: bool) -> CollectConfig:
        """Return the options of a collection: of the new tasks, or of the known tasks for rehearsal."""
        from ..collect import CollectConfig

        return CollectConfig(
            out=self.config.out / ("rehearsal" if rehearsal else "demonstrations"),
            suites=(SUITE,),
            left_out="without" if rehearsal else "only",
            episodes=self.config.rehearsal if rehearsal else self.config.demonstrations,
            workers=self.config.workers,
            seed=self.config.seed,
            resume=True,
        )

    @property
    def training(self) -> TrainConfig:
        """The options of the training; it resumes an interrupted one."""
        from ...training.configuration import LoopConfig
        from ..train.folder import OPTIONS_FILE
        from ..train.options import TrainConfig

        from_scratch, out = self.config.from_scratch, self.config.out / "training"
        steps = self.config.steps or (20000 if from_scratch else 800)
        loop = LoopConfig(
            steps=steps,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate or (LEARNING_RATE if from_scratch else 5e-4),
            warmup=min(200, steps // 10),
            seed=self.config.seed,
            save_every=100,
        )
        return TrainConfig(
            data=tuple(
                self.collection(rehearsal=part).out for part in ([False, True] if self.uses_rehearsal else [False])
            ),
            out=out,
            init=None if from_scratch else "starter",
            loop=loop,
            threads=self.config.threads,
            resume=(out / OPTIONS_FILE).exists(),
        )

    def evaluation(self, name: str) -> EvaluateConfig:
        """Return the options of an evaluation: `before` of the starter, `after` and `swapped` of the trained policy."""
        from ...policy.checkpoint.folder import find_checkpoint
        from ..evaluate.options import EvaluateConfig

        labels = {"before": "before", "after": "after", "swapped": "after, another object in the instruction"}
        return EvaluateConfig(
            checkpoint=str(find_checkpoint("starter") if name == "before" else self.checkpoint),
            suites=(SUITE,),
            tasks=tuple(task.name for task in new_tasks()),
            episodes=self.config.episodes,
            swap=("object",) if name == "swapped" else (),
            unchanged=name != "swapped",
            seed=self.config.seed,
            workers=self.config.workers,
            out=self.config.out / f"evaluation_{name}",
            label=labels[name],
            videos=self.config.videos,
            resume=True,
        )

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Names of the evaluations, in their order."""
        return EVALUATION_NAMES[1:] if self.config.from_scratch else EVALUATION_NAMES

    def stages(self) -> list[Stage]:
        """Return the stages in their order."""
        tasks, known = len(new_tasks()), len(known_tasks())
        loop, workers = self.training.loop, self.config.workers
        unseen_states = f"{self.config.episodes} initial states that no demonstration used"
        new_episodes, rehearsal_episodes = self.config.demonstrations * tasks, self.config.rehearsal * known
        evaluate_seconds = SECONDS_TO_START + SECONDS_PER_EPISODE * self.config.episodes * 2 / workers

        def collection_stage(name: str, title: str, episodes: int, *, rehearsal: bool) -> Stage:
            seconds = SECONDS_TO_START + SECONDS_PER_DEMONSTRATION * episodes * 2 / workers
            return Stage(
                name,
                title,
                seconds,
                partial(self._is_collected, rehearsal=rehearsal),
                partial(self._collect, rehearsal=rehearsal),
            )

        def evaluation_stage(name: str, title: str) -> Stage:
            return Stage(
                name, title, evaluate_seconds, partial(self._is_evaluated, name), partial(self._evaluate, name)
            )

        stages = [
            collection_stage(
                "collect", f"Collect {new_episodes} demonstrations of {tasks} new tasks", new_episodes, rehearsal=False
            )
        ]
        if self.uses_rehearsal:
            title = f"Collect {rehearsal_episodes} demonstrations of {known} known tasks, against forgetting"
            stages.append(collection_stage("rehearsal", title, rehearsal_episodes, rehearsal=True))
        if not self.config.from_scratch:
            stages.append(evaluation_stage("before", f"Evaluate the starter on {unseen_states}"))
        training_title = "Train from scratch" if self.config.from_scratch else "Fine-tune the starter"
        seconds = SECONDS_TO_START + SECONDS_PER_SAMPLE * loop.steps * loop.batch_size
        stages.append(Stage("train", f"{training_title}, {loop.steps} steps", seconds, self._is_trained, self._train))
        stages.append(evaluation_stage("after", f"Evaluate the trained policy on {unseen_states}"))
        stages.append(
            evaluation_stage("swapped", "Name another object in the instruction, from the same initial states")
        )
        return stages

    def results(self, name: str) -> dict[str, Any] | None:
        """Return the content of an evaluation's `results.json`; None if it was skipped or is not complete."""
        from ...sim.evaluation.run_folder import RESULTS_FILE
        from ...sim.json_files import read_json

        path = self.config.out / f"evaluation_{name}" / RESULTS_FILE
        results = read_json(path) if path.is_file() else None
        return results if results and not results["errors"] and results["episodes"] == self.config.episodes else None

    def _is_collected(self, *, rehearsal: bool) -> bool:
        out = self.collection(rehearsal=rehearsal).out
        return (out / "collection.json").is_file() and not out.with_name(f"{out.name}.partial").exists()

    def _collect(self, *, rehearsal: bool) -> None:
        from ..collect import collect_demonstrations

        summary = collect_demonstrations(self.collection(rehearsal=rehearsal))
        failures = sum(count.failures for count in summary.tasks)
        print(f"      {summary.episodes} demonstrations, {summary.frames} frames; {failures} failed and were not kept")

    def _is_trained(self) -> bool:
        from ...policy.checkpoint.folder import PROVENANCE_FILE
        from ...sim.json_files import read_json

        path = self.checkpoint / PROVENANCE_FILE
        return path.is_file() and read_json(path).get("step") == self.training.loop.steps

    def _train(self) -> None:
        from ..train.command import train_policy

        result = train_policy(self.training)
        print(f"      loss {result.loss:.4f} after {result.steps} steps; checkpoint in {result.checkpoint}")

    def _is_evaluated(self, name: str) -> bool:
        return self.results(name) is not None

    def _evaluate(self, name: str) -> None:
        from ..evaluate.command import evaluate
        from ..evaluate.episodes import plan_jobs

        config = self.evaluation(name)
        # Each initial state goes to one task, in turn, so that every episode has its own state.
        task_index = {task: place for place, task in enumerate(config.tasks)}
        jobs = [job for job in plan_jobs(config) if job.initial_state % len(task_index) == task_index[job.task]]
        _, results = evaluate(config, jobs=jobs)
        if results["errors"]:
            raise WorldError(
                f"{results['errors']} episodes failed to run, see {config.out}/records.jsonl. Repeat the command to "
                "run them again; everything else is kept."
            )
        meaning = "picked the first object anyway" if name == "swapped" else "succeeded"
        print(f"      {format_success_rate(select_result(name, results))} {meaning}")


def select_result(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return the rate that an evaluation measures.

    Args:
        name: One of `EVALUATION_NAMES`.
        results: The content of its `results.json`.

    Returns:
        The success rate. For `swapped`: the rate of episodes in which the policy picked the first object anyway.
    """
    return results["swaps"][0]["by_heart"] if name == "swapped" else results


def format_success_rate(results: dict[str, Any]) -> str:
    """Return a success rate with its 95 % interval as text."""
    return (
        f"{100 * results['rate']:.1f} % ({results['successes']} of {results['episodes']}, "
        f"95 % interval {100 * results['low']:.1f} to {100 * results['high']:.1f})"
    )
