"""Changes of a MuJoCo model that can be undone."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np


class ModelEdits:
    """Gives write access to a model's arrays, and restores them.

    Args:
        model: The mujoco.MjModel.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._before: dict[tuple[str, int, int], np.ndarray] = {}
        self._scalars: dict[str, Any] = {}

    def array(self, name: str) -> np.ndarray:
        """Return an array of the model, such as "cam_pos" or "vis.headlight.diffuse", to change it in place."""
        return self.rows(name, 0, len(attrgetter(name)(self.model)))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop` of an array, for arrays that are too large to copy."""
        view = attrgetter(name)(self.model)[start:stop]
        self._before.setdefault((name, start, stop), view.copy())
        return view

    def set(self, name: str, value: Any) -> None:
        """Set a scalar of the model, such as "vis.quality.shadowsize"."""
        owner, _, field = name.rpartition(".")
        holder = attrgetter(owner)(self.model) if owner else self.model
        self._scalars.setdefault(name, getattr(holder, field))
        setattr(holder, field, value)

    @property
    def needs_new_renderer(self) -> bool:
        """Whether something was changed that renderers keep a copy of."""
        return "vis.quality.shadowsize" in self._scalars or any(name == "tex_data" for name, *_ in self._before)

    def undo(self) -> None:
        """Restore all arrays and scalars."""
        for (name, start, stop), before in reversed(self._before.items()):
            attrgetter(name)(self.model)[start:stop] = before
        for name, value in self._scalars.items():
            owner, _, field = name.rpartition(".")
            setattr(attrgetter(owner)(self.model) if owner else self.model, field, value)
        self._before, self._scalars = {}, {}
