"""Policies for worker processes: one each, or one that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from ...sim.evaluation.shared_policy import SharedPolicyFactory

PRELOADED_MODULE = "saccade.policy.inference.batched"
"""What takes a worker process most of its start, to be imported before there are workers."""

CUDA_BATCH_SIZE = 8
"""Decisions that a GPU makes at once unless told otherwise; the same for any number of workers, for it decides bits."""

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class PolicyFactory:
    """Loads a policy from its checkpoint folder, in any process, to run on one thread and act in one world."""

    folder: Path
    device: Device
    precision: Precision
    kernels: str | None = None
    skill: str | None = None

    def __call__(self) -> Any:
        from ...policy.inference.actor import PolicyActor

        return PolicyActor(
            self.folder,
            threads=1,
            device=self.device,
            dtype=_dtype(self.precision),
            kernels=self.kernels,
            skill=self.skill,
        )

    def with_folder(self, folder: Path) -> PolicyFactory:
        """Return the same for a copy of the checkpoint."""
        return replace(self, folder=folder)


@dataclass(frozen=True)
class BatchedPolicyFactory:
    """Loads a policy that makes up to `max_batch_size` decisions at once, for several worlds."""

    policies: PolicyFactory
    max_batch_size: int

    def __call__(self) -> Any:
        from ...policy.inference.batched import BatchedActor

        factory = self.policies
        return BatchedActor(
            factory.folder,
            self.max_batch_size,
            threads=1,
            device=factory.device,
            dtype=_dtype(factory.precision),
            kernels=factory.kernels,
            skill=factory.skill,
        )


def worker_policy_factory(policies: PolicyFactory, batch: int | None) -> PolicyFactory | SharedPolicyFactory:
    """Return what gives workers their actors: `batch` is how many decisions are made at once, as of `choose_batch_size`."""
    from ...sim.evaluation.shared_policy import SharedPolicyFactory

    return policies if batch is None else SharedPolicyFactory(BatchedPolicyFactory(policies, batch))


def choose_batch_size(device: Device, batch: int | None) -> int | None:
    """Return how many decisions are made at once, in one process for all workers; None where each makes its own.

    A GPU holds one policy and not one for every worker. On the CPU a batch saves little, and workers that decide for
    themselves use all cores without waiting for each other.
    """
    if batch is None and device == "cuda":
        return CUDA_BATCH_SIZE
    return batch


def _dtype(precision: Precision) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
