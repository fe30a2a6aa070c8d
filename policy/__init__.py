"""The policy: contract, network, checkpoints and inference. Names load on first use: a contract needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.folder import Checkpoint, collect_provenance, read_checkpoint, read_contract, write_checkpoint
    from .contract import (
        ActionSpec,
        CameraSpec,
        Contract,
        ContractMismatch,
        Difference,
        GripperSpec,
        Normalization,
        Offer,
        StateSpec,
    )
    from .normalization import Normalizer, fit_normalization

__all__ = [
    "ActionSpec",
    "CameraSpec",
    "Checkpoint",
    "Contract",
    "ContractMismatch",
    "Difference",
    "GripperSpec",
    "Normalization",
    "Normalizer",
    "Offer",
    "StateSpec",
    "collect_provenance",
    "fit_normalization",
    "read_checkpoint",
    "read_contract",
    "write_checkpoint",
]

_CHECKPOINT = ("Checkpoint", "collect_provenance", "read_checkpoint", "read_contract", "write_checkpoint")
_NORMALIZATION = ("Normalizer", "fit_normalization")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "checkpoint.folder" if name in _CHECKPOINT else "normalization" if name in _NORMALIZATION else "contract"
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
