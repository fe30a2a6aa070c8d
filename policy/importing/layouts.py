"""Detect the layout (method) of a released folder from its action head's tensor names and its config.json."""

from __future__ import annotations

from ...errors import InputError
from .cogvla import is_cogvla
from .released import ReleasedCheckpoint
from .weights import WeightSource

LAYOUTS = ("cogvla", "openvla-oft", "vla-adapter", "mergevla")


def find_layout(
    released: ReleasedCheckpoint, base: ReleasedCheckpoint | None, expected_layout: str | None = None
) -> str:
    """Return the layout of a released folder, one of `LAYOUTS`.

    Args:
        released: The folder.
        base: The folder of the base model, if the adapter is not merged.
        expected_layout: The layout that the folder must have; any when left out.

    Raises:
        InputError: The layout is none of `LAYOUTS` or not `expected_layout`, or the action head is not supported.
    """
    if not released.has_part("action_head"):
        raise InputError(
            f"{released.folder}/action_head--STEP_checkpoint.pt",
            got="no such file",
            expected=f"a policy of {', '.join(LAYOUTS)} with a head for continuous actions",
            fix="Check the path. Policies that generate actions as tokens, such as OpenVLA, cannot be imported.",
        )
    layout = _layout_of_head(released.read_part("action_head"))
    if layout is None:
        configured = released if released.has("config.json") else base
        cogvla = configured is not None and is_cogvla(configured.read_json("config.json"))
        layout = "cogvla" if cogvla else "openvla-oft"
    if expected_layout not in (None, layout):
        fix = f"Leave --layout out, or give --layout {layout}."
        raise InputError("layout", got=expected_layout, expected=f"{layout}, as the files say", fix=fix)
    return layout


def _layout_of_head(head: WeightSource) -> str | None:
    """Return the layout of an action head; None for the head that CogVLA and OpenVLA-OFT share."""
    names = list(head)
    if any("noise_predictor" in name for name in names):
        fix = "Import a policy that was trained with L1 regression."
        raise InputError(head.source, got="a diffusion head", expected="a head for L1 regression", fix=fix)
    if any("moe" in name or ".q_proj_task." in name for name in names):
        return "mergevla"
    if any(".q_proj." in name for name in names):
        return "vla-adapter"
    if "model.mlp_resnet_blocks.0.ffn.1.weight" not in head or any("_proj." in name for name in names):
        raise InputError(
            head.source,
            got=f"tensors such as {', '.join(sorted(names)[:3]) or 'none'}",
            expected=f"the action head of {', '.join(LAYOUTS)}",
            fix="Import a checkpoint of one of these layouts.",
        )
    return None
