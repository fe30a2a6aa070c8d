"""The fault of normalisation statistics: a checkpoint without them, or with those of another contract."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .....errors import InputError
from .outcome import CATALOGUE_ROWS, NO_TIMES, FaultOutcome

STATISTICS = "normalisation statistics"


def check_foreign_statistics(folder: Path) -> FaultOutcome:
    """Load a checkpoint without statistics, and one with a number too few; both must be refused.

    Args:
        folder: Folder for copies of the starter.
    """
    from .....policy.checkpoint.folder import find_checkpoint
    from .....policy.inference.actor import PolicyActor

    source, problems, refusals = find_checkpoint("starter"), [], []
    for name in ("missing", "of another length"):
        checkpoint = folder / name.replace(" ", "_")
        shutil.copytree(source, checkpoint)
        path = checkpoint / "contract.json"
        contract = json.loads(path.read_text())
        if name == "missing":
            contract.pop("normalization")
        else:
            contract["normalization"]["state_low"] = contract["normalization"]["state_low"][:-1]
        path.write_text(json.dumps(contract))
        try:
            PolicyActor(checkpoint)
            problems.append(f"statistics {name}: loaded")
        except InputError as error:
            refusals.append(str(error.what))
    return FaultOutcome(
        STATISTICS,
        CATALOGUE_ROWS[12],
        "a checkpoint without statistics, and one with a missing number",
        "refused before anything connects",
        f"refused: {', '.join(refusals)}",
        *NO_TIMES,
        tuple(problems),
    )
