"""The files with which LeRobot's commands load a Saccade checkpoint, written without importing LeRobot.

`lerobot-eval --policy.path=FOLDER` reads the policy's options from `config.json` and its processor steps from
`policy_preprocessor.json` and `policy_postprocessor.json`. The layout is that of LeRobot 0.6.1; a test compares it with
what LeRobot itself writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from .contract import Contract
from .network.architecture import Architecture
from .pretrained.adaptation import LoraAdaptation

IMAGES, STATE_KEY, ACTION_KEY = "observation.images.", "observation.state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
IDENTITY = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")


def camera_name(key: str) -> str:
    """Return the contract's name for the camera of a LeRobot feature: `observation.images.front` is `front`."""
    return key.removeprefix(IMAGES).removeprefix("observation.")


def lerobot_files(
    architecture: Architecture, contract: Contract, adaptation: LoraAdaptation | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the contents of a checkpoint's `config.json`, and the texts of its other LeRobot files by name."""
    inputs = {
        IMAGES + camera.name: {"type": "VISUAL", "shape": [3, camera.height, camera.width]}
        for camera in contract.cameras
    }
    inputs[STATE_KEY] = {"type": "STATE", "shape": [len(contract.state.names)]}
    outputs = {ACTION_KEY: {"type": "ACTION", "shape": [len(contract.action.names)]}}
    config = {
        "type": "saccade",
        "input_features": inputs,
        "output_features": outputs,
        "push_to_hub": False,
        "chunk_size": contract.chunk,
        "n_action_steps": contract.execute,
        "architecture": asdict(architecture),
        "adaptation": None if adaptation is None else asdict(adaptation),
        "normalization_mapping": IDENTITY,
    }
    before = [
        _step("rename_observations_processor", rename_map={}),
        _step("to_batch_processor"),
        _step("device_processor", device="cpu", float_dtype=None),
        _step("normalizer_processor", eps=1e-08, features=inputs | outputs, norm_map=IDENTITY),
    ]
    after = [
        _step("unnormalizer_processor", eps=1e-08, features=outputs, norm_map=IDENTITY),
        _step("device_processor", device="cpu", float_dtype=None),
    ]
    return config, {
        f"{name}.json": json.dumps({"name": name, "steps": steps}, indent=2) + "\n"
        for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after))
    }


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}
