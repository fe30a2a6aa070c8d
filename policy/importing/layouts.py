"""Which method a released folder is of: told from the names of its action head's tensors and its configuration."""

from __future__ import annotations

from ...errors import InputError
from .cogvla import is_cogvla
from .released import ReleasedCheckpoint
from .weights import WeightSource

LAYOUTS = ("cogvla", "openvla-oft", "vla-adapter", "mergevla")


def find_layout(
    released: ReleasedCheckpoint, base: ReleasedCheckpoint | None, expected_layout: str | None = None
) -> str:
    """Return the layout of a folder; `base` is that of the model it adapts, where its adapter is not merged.

    Raises InputError for a folder of none of `LAYOUTS`, for action heads that are not supported, and unless what is
    found is `expected_layout`.
    """
    if not released.has_part("action_head"):
        raise InputError(
            f"{released.folder}/action_head--STEP_checkpoint.pt",
            got="no such file",
            expected=f"a policy of {', '.join(LAYOUTS)} with a head for continuous actions",
            fix="Check the path; policies that write actions as words, such as OpenVLA itself, cannot be imported.",
        )
    found = _layout_of_head(released.read_part("action_head"))
    if found is None:
        described = released if released.has("config.json") else base
        found = "cogvla" if described is not None and is_cogvla(described.read_json("config.json")) else "openvla-oft"
    if expected_layout not in (None, found):
        fix = f"Leave --layout out, or give --layout {found}."
        raise InputError("layout", got=expected_layout, expected=f"{found}, as the files say", fix=fix)
    return found


def _layout_of_head(head: WeightSource) -> str | None:
    """Return the layout that a head belongs to, None for the one that CogVLA and OpenVLA-OFT share."""
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
            fix="Only these layouts can be imported.",
        )
    return None
