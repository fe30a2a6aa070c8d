"""Task vectors: the change that a skill made to one weight matrix, as two low-rank factors.

Ilharco et al., "Editing Models with Task Arithmetic" (2023), section 2; Hu et al., "LoRA" (2022), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....errors import InputError


@dataclass(frozen=True)
class TaskVector:
    """The change `up @ down` of a weight [m, n].

    It comes from the LoRA factors of a skill, not from weights that were rounded after the factors were added.

    Attributes:
        up: Factor B with the LoRA scaling, float32 [m, r].
        down: Factor A, float32 [r, n].

    Raises:
        InputError: The factors do not fit together, or a value is not finite.
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
                    fix="Train the skill again: its training diverged.",
                )

    @classmethod
    def from_delta(cls, delta: torch.Tensor) -> TaskVector:
        """Return the task vector of a fully trained weight, from its change [m, n]; one factor is the identity."""
        identity = torch.eye(min(delta.shape))
        return cls(identity, delta) if delta.shape[0] <= delta.shape[1] else cls(delta, identity)

    @property
    def shape(self) -> tuple[int, int]:
        """m, n."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """Upper bound of the rank of the change."""
        return min(self.up.shape[1], *self.shape)

    def dense(self) -> torch.Tensor:
        """Return the change as a matrix [m, n]."""
        return self.up @ self.down  # [m, r] @ [r, n]

    def inner_product(self, other: TaskVector) -> torch.Tensor:
        """Return the Frobenius inner product with another task vector [m, n]; no dense matrix is made."""
        return ((self.up.T @ other.up) * (self.down @ other.down.T)).sum()  # [r, r'] elementwise

    def svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reduced SVD from two QR decompositions: U [m, rank], S [rank], V^T [rank, n], largest first."""
        left, left_factor = torch.linalg.qr(self.up)  # [m, r], [r, r]
        right, right_factor = torch.linalg.qr(self.down.T)  # [n, r], [r, r]
        rows, values, columns = torch.linalg.svd(left_factor @ right_factor.T, full_matrices=False)
        rank = self.rank
        return left @ rows[:, :rank], values[:rank], columns[:rank] @ right.T

    def truncate(self, rank: int) -> TaskVector:
        """Return the nearest change of at most this rank, in the Frobenius norm (Eckart and Young, 1936)."""
        if rank >= self.up.shape[1]:
            return self
        left, values, right = self.svd()
        return TaskVector(left[:, :rank] * values[:rank], right[:rank])


def common_shape(vectors: Sequence[TaskVector]) -> tuple[int, int]:
    """Return the common shape (m, n) of task vectors; raises InputError if there are none or the shapes differ."""
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
    """Return the sum of task vectors as one, whose rank is the sum of their ranks."""
    common_shape(vectors)
    return TaskVector(torch.cat([each.up for each in vectors], 1), torch.cat([each.down for each in vectors]))
