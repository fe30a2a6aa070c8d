"""The processors that LeRobot puts around a Saccade policy: rename, batch and move tensors, and no more.

Normalisation is the contract's. The normaliser steps are there because LeRobot's commands address them by name; they
hold no statistics and change nothing.
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
    """Return the pipelines before and after the policy; `dataset_stats`, which LeRobot passes, are not used."""
    del dataset_stats
    steps = make_default_policy_processor_steps(config)
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.to_device, steps.normalize],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
