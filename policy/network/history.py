"""What a policy remembers: what its last decisions saw, of which each new one attends to a few frames.

Every remembered frame is a block of keys and values. A decision picks blocks by the mean of their keys, as VMoBA does
(arXiv 2506.23858), each head its own, and attends to them token by token; every other frame stays in the same softmax
as one pooled token (see `attend_with_pooled`), so that no frame is out of the gradient's reach.

What the present does not show, the actions alone teach slowly. So the memory learns to recall, too: labelled points are
read off the state's token once it has remembered, and the pointing loss counts how far off they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...kernels.block_sparse import attend_with_pooled, full_attention, hide_keys, plan_unselected
from ...kernels.plan import block_scores, build_plan, cut_blocks, pack_selection, pool, select_top_k


@dataclass(frozen=True)
class FrameMemory:
    """What B episodes remember: `tokens` [B, H, N, 2D], keys and values of frames, the newest first.

    `valid`: boolean [B, H], false for frames before the episode's start, whose tokens may hold anything.
    """

    tokens: torch.Tensor
    valid: torch.Tensor

    def with_new_frame(self, tokens: torch.Tensor) -> FrameMemory:
        """Return the memory after one more decision, which leaves tokens [B, N, 2D]; the oldest frame is forgotten."""
        return FrameMemory(
            torch.cat([tokens[:, None], self.tokens[:, :-1]], dim=1),
            torch.cat([torch.ones_like(self.valid[:, :1]), self.valid[:, :-1]], dim=1),
        )


@dataclass(frozen=True)
class PastFrames:
    """What the decisions of a batch remember, as frames: each passes the towers once, whoever remembers it.

    `images` uint8 [F, V, 3, H, W]: remembered frames that the batch does not decide on; `batch_row` int64 [F]: a row of
    the batch under whose instruction each was seen; `place` int64 [B, H]: which frame stands k + 1 decisions back,
    counted through the B frames of the batch and then these F, -1 before the episode's start.
    """

    images: torch.Tensor
    batch_row: torch.Tensor
    place: torch.Tensor


LABELLED_POINTS = 2
"""Points that a grounding label names, in the arm's frame and in each view: the instructed object and its goal."""


class History(nn.Module):
    """Let the present's tokens attend to remembered frames, in a residual that starts at zero.

    `frames`: how many are remembered, H; `selected`: how many of them each head attends to token by token. `recall`
    reads labelled points off a token, [B, 3 * LABELLED], in decimetres of the arm's frame. Keys and values are computed
    when a frame is seen and kept: what is remembered is not computed again.
    """

    def __init__(self, *, width: int, heads: int, frames: int, selected: int) -> None:
        super().__init__()
        self.heads, self.frames, self.selected = heads, frames, selected
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.remembered_norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.age = nn.Parameter(torch.empty(1, frames, 1, 2 * width))
        # Without a bias: where nothing is remembered, nothing is added.
        self.output = nn.Linear(width, width, bias=False)
        self.recall = nn.Linear(width, 3 * LABELLED_POINTS)
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Draw the parameters anew, so that a policy decides as without this part."""
        for part in self.children():
            part.reset_parameters()
        nn.init.normal_(self.age, std=0.02)
        nn.init.zeros_(self.output.weight)

    def encode_frames(self, visual: torch.Tensor) -> torch.Tensor:
        """Return what frames leave, [B, N, 2D], from their visual tokens [B, N, D]."""
        return self.key_value(self.remembered_norm(visual))

    def empty_memory(self, batch: int, tokens: int) -> FrameMemory:
        """Return the memory of B episodes that begin, of frames of N tokens."""
        shape = (batch, self.frames, tokens, self.age.shape[-1])
        return FrameMemory(self.age.new_zeros(shape), self.age.new_zeros(shape[:2], dtype=torch.bool))

    def forward(self, current_tokens: torch.Tensor, memory: FrameMemory) -> torch.Tensor:
        """Return the present's tokens [B, Q, D] with what was remembered added to them."""
        query = self.query(self.norm(current_tokens)).unflatten(-1, (self.heads, -1))
        frame_tokens = torch.where(memory.valid[..., None, None], memory.tokens + self.age, 0.0).to(query.dtype)
        key, value = (part.flatten(0, 2).unflatten(-1, (self.heads, -1)) for part in frame_tokens.chunk(2, dim=-1))
        attention_output = self._attend(query, key, value, memory.valid)
        return current_tokens + self.output(attention_output)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Attend with query [B, Q, heads, d] to key and value [B * H * N, heads, d]; return [B, Q, D]."""
        batch, queries = query.shape[:2]
        tokens = len(key) // valid.numel()
        blocks = cut_blocks(len(key), tokens, lengths=batch, longest=self.frames * tokens, device=key.device)
        # All tokens of a decision choose together, so that a head reads `selected` frames and no more.
        members = torch.arange(batch, device=key.device)
        scores = block_scores(query.mean(1), pool(key, blocks), blocks, members).detach()
        chosen = select_top_k(scores.masked_fill(~valid, float("-inf")), self.selected)
        selection = pack_selection(chosen.repeat_interleave(queries, dim=1), blocks)
        levels = full_attention(batch * queries, len(key), device=key.device)
        levels = hide_keys(levels, (~valid).flatten().repeat_interleave(tokens))
        plan = build_plan(*levels, query_lengths=batch, key_lengths=batch, selection=selection)
        rest = plan_unselected(levels, blocks, selection, batch)
        attention_output, _ = attend_with_pooled(query.flatten(0, 1), key, value, plan, rest, blocks)
        return attention_output.unflatten(0, (batch, queries)).flatten(2)


def recalled_point_loss(recalled_points: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return how far recalled points [B, 3 * LABELLED] are off, a scalar: mean over axes in decimetres, sum of points.

    `points`: [B, 3 * LABELLED] in metres; those that are no numbers count nothing.
    """
    error = (recalled_points.float() - 10 * points.nan_to_num()).abs() * points.isfinite()
    return error.mean() * LABELLED_POINTS
