"""Task vectors: what a skill added to one weight matrix, kept as the two thin factors in which it was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....errors import InputError


@dataclass(frozen=True)
class TaskVector:
    """The change `up @ down` of a weight [m, n]: `up` [m, r] and `down` [r, n], float32.

    From a skill's low-rank factors, with their scale in `up`, never from weights that were rounded after the factors
    had been added. Raises InputError for factors that do not fit together or hold a number that is not finite.
    """

    up: torch.Tensor
    down: torch.Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise InputError(
                "task vector",
                got=f"factors {tuple(self.up.shape)} and {tuple(self.down.shape)}",
                expected="[m, r] and [r, n]",
                fix="Take both factors from the same layer of the same skill.",
            )
        for name in ("up", "down"):
            object.__setattr__(self, name, getattr(self, name).float())
            if not getattr(self, name).isfinite().all():
                raise InputError(
                    f"task vector: {name}",
                    got="a number that is not finite",
                    expected="finite numbers",
                    fix="This skill's training has diverged: train it again.",
                )

    @classmethod
    def from_delta(cls, delta: torch.Tensor) -> TaskVector:
        """Return the task vector of a weight that was trained as a whole, from its change [m, n]."""
        identity = torch.eye(min(delta.shape))
        return cls(identity, delta) if delta.shape[0] <= delta.shape[1] else cls(delta, identity)

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """The most independent directions that it can have."""
        return min(self.up.shape[1], *self.shape)

    def dense(self) -> torch.Tensor:
        """Return the change itself, [m, n]."""
        return self.up @ self.down

    def inner_product(self, other: TaskVector) -> torch.Tensor:
        """Return the sum of the products of the two changes' elements, without making either dense."""
        return ((self.up.T @ other.up) * (self.down @ other.down.T)).sum()

    def svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return its singular vectors and values U [m, rank], S [rank], V^T [rank, n], largest first."""
        left, right_factor = torch.linalg.qr(self.up)
        right, other = torch.linalg.qr(self.down.T)
        rows, values, columns = torch.linalg.svd(right_factor @ other.T, full_matrices=False)
        rank = self.rank
        return left @ rows[:, :rank], values[:rank], columns[:rank] @ right.T

    def truncate(self, rank: int) -> TaskVector:
        """Return the nearest change of at most so many independent directions, by Eckart and Young."""
        if rank >= self.up.shape[1]:
            return self
        left, values, right = self.svd()
        return TaskVector(left[:, :rank] * values[:rank], right[:rank])


def common_shape(vectors: Sequence[TaskVector]) -> tuple[int, int]:
    """Return the one shape of task vectors; raises InputError for none and for different ones."""
    shapes = {vector.shape for vector in vectors}
    if len(shapes) != 1:
        raise InputError(
            "task vectors",
            got=", ".join(map(str, sorted(shapes))) or "none",
            expected="at least one, all of one shape",
            fix="Merge skills of one architecture.",
        )
    return shapes.pop()


def sum_vectors(vectors: Sequence[TaskVector]) -> TaskVector:
    """Return the sum of task vectors as one, of the ranks' sum."""
    common_shape(vectors)
    return TaskVector(torch.cat([each.up for each in vectors], 1), torch.cat([each.down for each in vectors]))
