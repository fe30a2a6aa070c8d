"""Plan an evaluation: decide and check everything that needs neither a simulator nor PyTorch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...machine import require_device
from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from ..checkpoints.find import checkpoint_folder
from ..checkpoints.worker_policies import PolicyFactory, choose_batch_size
from .episodes import plan_jobs
from .options import EvaluateConfig

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from ...sim.evaluation.cluster import ClusterOptions
    from ...sim.perturbation.job import Job


@dataclass(frozen=True)
class EnvironmentFactory:
    """Builds the environment of a task, in any process, and checks it against the policy's contract.

    Attributes:
        contract: What the policy was trained with.
        world: The world of the suites.
    """

    contract: Contract
    world: worlds.EvaluationWorld

    def __call__(self, suite: str, task: str) -> Any:
        """Return the environment of a task; raises ContractMismatch if the policy does not fit it."""
        env = self.world.environment(suite, task)
        self.contract.check(env.offer)
        return env


@dataclass(frozen=True)
class EvaluationPlan:
    """The evaluation of one checkpoint, before anything is run.

    Attributes:
        config: The options.
        checkpoint: Folder of the checkpoint.
        name: Name of the checkpoint in the run folder and the report.
        contract: The contract of the checkpoint.
        jobs: The episodes, in the order of their tasks.
        out: Output folder.
        cluster: The Ray cluster that runs the episodes; None for worker processes of this machine.
    """

    config: EvaluateConfig
    checkpoint: Path
    name: str
    contract: Contract
    jobs: tuple[Job, ...]
    out: Path
    cluster: ClusterOptions | None

    @property
    def batch_size(self) -> int | None:
        """Decisions of one forward pass for all workers; None if every worker has its own policy."""
        return None if self.cluster else choose_batch_size(self.config.device, self.config.batch)

    @property
    def policies(self) -> PolicyFactory:
        """What loads the policy in any process."""
        config = self.config
        return PolicyFactory(self.checkpoint, config.device, config.precision, config.kernels, config.skill)

    def make_world(self) -> worlds.EvaluationWorld:
        """Build the world of the suites for the policy.

        Raises:
            InputError: The world does not fit the contract, or LIBERO's packages or assets are missing.
            WorldError: The simulator of this machine does not repeat the published results.
        """
        return worlds.make_evaluation_world(worlds.find_family(self.config.suites), self.contract, self.config.libero)

    def describe(self, world: worlds.EvaluationWorld) -> dict[str, Any]:
        """Return the content of `run.json`: label, command, checkpoint, protocol, contract, provenance and tasks."""
        from ...policy.checkpoint.folder import PROVENANCE_FILE
        from ...sim.json_files import read_json

        config, provenance = self.config, read_json(self.checkpoint / PROVENANCE_FILE)
        return {
            "label": config.label or self.name,
            "command": shlex.join(["saccade", *sys.argv[1:]]),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": {"name": self.name, "digest": provenance.get("digest")},
            "protocol": {
                "seed": config.seed,
                "instruction_from": config.instruction_from,
                "device": config.device,
                "precision": config.precision,
                **({"kernels": config.kernels} if config.kernels else {}),
                **({"skill": config.skill} if config.skill else {}),
                **({"batch": self.batch_size} if self.batch_size else {}),
                **_perturbation_protocol(config),
                **world.describe(),
            },
            "contract": read_json(self.checkpoint / "contract.json"),
            "provenance": provenance,
            "tasks": list(dict.fromkeys((job.suite, job.task) for job in self.jobs)),
            "planned": len(self.jobs),
        }


def plan_evaluation(config: EvaluateConfig, jobs: Sequence[Job] | None = None) -> EvaluationPlan:
    """Find the checkpoint, list the episodes and choose the output folder; imports PyTorch only for a GPU.

    Args:
        config: The options of `saccade eval`; `against` is ignored.
        jobs: The episodes to run. Default: those of `plan_jobs`.

    Raises:
        InputError: The checkpoint, a task, the device or the cluster's address does not exist.
    """
    from ...policy.checkpoint.folder import read_contract

    checkpoint = checkpoint_folder(config.checkpoint)
    cluster = None
    if config.cluster is not None:
        from ...sim.evaluation.cluster import ClusterOptions

        cluster = ClusterOptions(config.cluster, config.workers, gpu=config.device == "cuda")
    else:
        require_device(config.device)
    name = "starter" if config.checkpoint == "starter" else Path(config.checkpoint).resolve().name
    return EvaluationPlan(
        config=config,
        checkpoint=checkpoint,
        name=name,
        contract=read_contract(checkpoint),
        jobs=tuple(plan_jobs(config) if jobs is None else jobs),
        out=config.out or Path("evaluations") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}",
        cluster=cluster,
    )


def _perturbation_protocol(config: EvaluateConfig) -> dict[str, Any]:
    """Return the part of the protocol about perturbations and swaps; empty without any."""
    if not (config.perturb or config.swap):
        return {}
    from ...sim import perturbation
    from ...sim.source_hash import hash_sources

    return {
        "perturb": [str(each) for each in parse_perturbations(config.perturb)],
        "swap": list(config.swap),
        "unchanged": config.unchanged,
        "perturbation_sha256": hash_sources(Path(perturbation.__file__).parent),
    }
