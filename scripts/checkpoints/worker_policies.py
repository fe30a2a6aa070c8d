"""Policies for worker processes: one for each, or one that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...machine import Device

if TYPE_CHECKING:
    import torch

    from ...sim.evaluation.shared_policy import SharedPolicyFactory

PRELOADED_MODULE = "saccade.policy.inference.batched"
"""The slowest import of a worker process; it is imported once, before the workers are forked."""

CUDA_BATCH_SIZE = 8
"""Default batch size on a GPU. It does not depend on the number of workers, because it affects the last bits."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class PolicyFactory:
    """Loads a policy with one CPU thread, in any process, to act in one environment.

    Attributes:
        folder: Folder of the checkpoint.
        device: Where the network runs.
        precision: Precision of weights and arithmetic.
        kernels: "torch" or "saccade"; None for the setting of the checkpoint.
        skill: Skill of a merged policy; None to let the router select it.
    """

    folder: Path
    device: Device
    precision: Precision
    kernels: str | None = None
    skill: str | None = None

    def __call__(self) -> Any:
        """Load the policy."""
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
        """Return the factory for a copy of the checkpoint."""
        return replace(self, folder=folder)


@dataclass(frozen=True)
class BatchedPolicyFactory:
    """Loads a policy that decides for several environments in one forward pass.

    Attributes:
        policies: What to load.
        max_batch_size: Largest number of decisions in one forward pass.
    """

    policies: PolicyFactory
    max_batch_size: int

    def __call__(self) -> Any:
        """Load the policy."""
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


def worker_policy_factory(policies: PolicyFactory, batch_size: int | None) -> PolicyFactory | SharedPolicyFactory:
    """Return what gives workers their policy.

    Args:
        policies: What to load.
        batch_size: Decisions in one forward pass of a shared policy; None for one policy per worker. See
            `choose_batch_size`.
    """
    from ...sim.evaluation.shared_policy import SharedPolicyFactory

    return policies if batch_size is None else SharedPolicyFactory(BatchedPolicyFactory(policies, batch_size))


def choose_batch_size(device: Device, batch: int | None) -> int | None:
    """Return the batch size of a shared policy; None if every worker has its own policy.

    On a GPU the workers share one policy. On the CPU a batch saves little time, and workers with their own policies use
    all cores without waiting for each other.

    Args:
        device: Where the network runs.
        batch: The option --batch; None for the default.
    """
    if batch is None and device == "cuda":
        return CUDA_BATCH_SIZE
    return batch


def _dtype(precision: Precision) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
