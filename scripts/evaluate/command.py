"""`saccade eval`: a policy judged in simulation, episode by episode, with intervals and a report."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, WorldError
from ...sim import worlds
from ...sim.perturbation.axes import parse_perturbations
from ..checkpoints.find import _require_device, checkpoint_folder
from ..checkpoints.worker_policies import PRELOADED_MODULE, PolicyFactory, choose_batch_size, worker_policy_factory
from .episodes import plan_jobs
from .options import EvaluateConfig
from .tables import results_table

if TYPE_CHECKING:
    from ...policy.contract import Contract
    from ...sim.job import Job


@dataclass(frozen=True)
class EnvironmentFactory:
    """Builds a world for a policy, in any process, and refuses one that the policy's contract does not fit."""

    contract: Contract
    world: worlds.EvaluationWorld

    def __call__(self, suite: str, task: str) -> Any:
        env = self.world.environment(suite, task)
        self.contract.check(env.offer)
        return env


def evaluate(
    config: EvaluateConfig, progress: bool = True, jobs: Sequence[Job] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Evaluate, write everything into the output folder, and return that folder and the figures of `results.json`.

    `jobs` are the episodes to run; those of `plan_jobs(config)` when left out. Raises InputError for what does not fit,
    before anything moves, and WorldError when no episode could be run.
    """
    from ...policy.checkpoint.folder import PROVENANCE_FILE, read_contract
    from ...sim.evaluation.cluster import ClusterOptions, ClusterPool
    from ...sim.evaluation.pool import prepare_workers
    from ...sim.rendering import choose_backend

    folder = checkpoint_folder(config.checkpoint)
    cluster = None
    if config.cluster is not None:
        cluster = ClusterOptions(config.cluster, config.workers, gpu=config.device == "cuda")
    if cluster is None:
        _require_device(config.device)
        prepare_workers([PRELOADED_MODULE])
    jobs = plan_jobs(config) if jobs is None else list(jobs)
    contract = read_contract(folder)
    choose_backend()
    from ...sim.evaluation.robustness import headline_records, memorisation_rows, robustness_summary
    from ...sim.evaluation.run_folder import RESULTS_FILE, prepare_run_folder, read_evaluation, read_json, write_json
    from ...sim.evaluation.runner import run_and_record, run_jobs
    from ...sim.evaluation.statistics import summarize
    from ...sim.fingerprint import fingerprint_digest
    from ...sim.report.report import write_report

    world = worlds.make_evaluation_world(worlds.find_family(config.suites), contract, config.libero)
    provenance = read_json(folder / PROVENANCE_FILE)
    batch = None if config.cluster else choose_batch_size(config.device, config.batch)
    name = "starter" if config.checkpoint == "starter" else Path(config.checkpoint).resolve().name
    out = config.out or Path("evaluations") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    run = {
        "label": config.label or name,
        "command": shlex.join(["saccade", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": {"name": name, "digest": provenance.get("digest")},
        "protocol": {
            "seed": config.seed,
            "instruction_from": config.instruction_from,
            "device": config.device,
            "precision": config.precision,
            **({"kernels": config.kernels} if config.kernels else {}),
            **({"skill": config.skill} if config.skill else {}),
            **({"batch": batch} if batch else {}),
            **_perturbation_protocol(config),
            **world.describe(),
        },
        "contract": read_json(folder / "contract.json"),
        "provenance": provenance,
        "tasks": list(dict.fromkeys((job.suite, job.task) for job in jobs)),
        "planned": len(jobs),
    }
    fingerprint = world.fingerprint()
    prepare_run_folder(out, run, fingerprint, resume=config.resume, overwrite=config.overwrite)
    make_env, policies = (
        EnvironmentFactory(contract, world),
        PolicyFactory(folder, config.device, config.precision, config.kernels, config.skill),
    )
    recording_options = {"videos": config.videos, "progress": progress}
    if cluster is None:
        run_jobs(jobs, make_env, worker_policy_factory(policies, batch), config.workers, out, **recording_options)
    else:
        make_pool = functools.partial(ClusterPool, cluster, make_env, policies, world.fingerprint, fingerprint, out)
        run_and_record(jobs, make_pool, out, **recording_options)
    # Figures and report are of the same episodes: all that the folder holds, those of an earlier command included.
    evaluation = read_evaluation(out)
    records = evaluation.records
    results = {
        **{key: run[key] for key in ("label", "command", "checkpoint", "protocol")},
        "fingerprint_sha256": fingerprint_digest(fingerprint),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **summarize(headline_records(records)),
        "robustness": robustness_summary(records),
        "swaps": memorisation_rows(records),
    }
    results["errors"] = sum(record.outcome == "error" for record in records)
    write_json(out / RESULTS_FILE, results)
    write_report([evaluation], out / "report.html")
    return out, results


def _perturbation_protocol(config: EvaluateConfig) -> dict[str, Any]:
    """Return what of the protocol is perturbations and swaps: nothing where there are none."""
    if not (config.perturb or config.swap):
        return {}
    from ...sim import perturbation
    from ...sim.fingerprint import hash_sources

    return {
        "perturb": [str(each) for each in parse_perturbations(config.perturb)],
        "swap": list(config.swap),
        "unchanged": config.unchanged,
        "perturbation_sha256": hash_sources(Path(perturbation.__file__).parent),
    }


def run(config: EvaluateConfig) -> int:
    """Evaluate, print the figures and where the report is, and return the exit code."""
    if config.against:
        out, errors = evaluate_all(config)
    else:
        out, results = evaluate(config)
        print(results_table(results))
        errors = results["errors"]
    print(f"Report: {out / 'report.html'}")
    if errors:
        raise WorldError(
            f"{errors} episodes could not be run and are not counted (see records.jsonl). "
            f"Try them again: repeat the command with --out {out} --resume."
        )
    return 0


def evaluate_all(config: EvaluateConfig, progress: bool = True) -> tuple[Path, int]:
    """Evaluate every checkpoint on the same episodes, print the figures, and write a report that compares them.

    Returns its folder and how many episodes could not be run. What does not fit any of them is found before anything
    moves: InputError.
    """
    from ...policy.checkpoint.folder import read_contract
    from ...sim.evaluation.run_folder import read_evaluation
    from ...sim.rendering import choose_backend
    from ...sim.report.report import write_report
    from ..report import comparison_lines

    names = (config.checkpoint, *config.against)
    family = worlds.find_family(config.suites)
    contracts = [read_contract(checkpoint_folder(name)) for name in names]
    choose_backend()
    for contract in contracts:
        worlds.make_evaluation_world(family, contract, config.libero)
    # A checkpoint's folder is often called "checkpoint": what tells them apart is the first part that differs.
    labels = _distinct_labels(names)
    out = config.out or Path("evaluations") / f"comparison-{datetime.now():%Y%m%d-%H%M%S}"
    folders, errors = [], 0
    for name, label in zip(names, labels, strict=True):
        print(f"{label}:")
        each = replace(config, checkpoint=name, against=(), label=label, out=out / label)
        folder, results = evaluate(each, progress)
        print(results_table(results))
        folders.append(folder)
        errors += results["errors"]
    evaluations = [read_evaluation(folder) for folder in folders]
    print("\n".join(comparison_lines(evaluations)))
    write_report(evaluations, out / "report.html")
    return out, errors


def _distinct_labels(names: Sequence[str]) -> list[str]:
    """Return short names of checkpoints' folders, all different; raises InputError for one that is named twice."""
    paths = [Path(name).resolve() for name in names]
    for depth in range(1, max(len(path.parts) for path in paths)):
        short = ["-".join(path.parts[-depth:]).strip("/") for path in paths]
        if len(set(short)) == len(short):
            return short
    raise InputError("checkpoints", got=", ".join(names), expected="every one once", fix="Leave the repeated one out.")
