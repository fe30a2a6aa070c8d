"""LeRobot's processors of a Saccade policy: they rename, batch and move tensors.

The policy normalizes by its contract. The normalizer steps exist because LeRobot's commands address them by name; they
have no statistics and change nothing.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from .configuration_saccade import SaccadeConfig


def make_saccade_pre_post_processors(
    config: SaccadeConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Return the pipelines before and after the policy; LeRobot passes `dataset_stats`, which are not used."""
    del dataset_stats
    steps = make_default_policy_processor_steps(config)
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.to_device, steps.normalize],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
