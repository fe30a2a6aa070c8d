"""The memory of a policy: the frames of its last decisions, of which each decision attends to a few.

Every remembered frame is a block of keys and values. As in VMoBA (arXiv 2506.23858), each head selects blocks by the
mean of their keys and attends to them token by token. Every other frame stays in the same softmax as one pooled token
(see `attend_with_pooled`), so that every frame gets a gradient.

The action loss alone teaches slowly what the current image does not show. So the memory has a recall loss, too:
labelled points are predicted from the state token after it attended to the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...kernels.block_sparse import attend_with_pooled, full_attention, hide_keys, plan_unselected
from ...kernels.plan import block_scores, build_plan, cut_blocks, pack_selection, pool, select_top_k


@dataclass(frozen=True)
class FrameMemory:
    """What B episodes remember.

    Attributes:
        tokens: Keys and values of frames [B, H, N, 2D], the newest first.
        valid: Boolean [B, H], false for frames before the start of the episode; their tokens are arbitrary.
    """

    tokens: torch.Tensor
    valid: torch.Tensor

    def with_new_frame(self, tokens: torch.Tensor) -> FrameMemory:
        """Return the memory with the frame tokens [B, N, 2D] of one more decision, without the oldest frame."""
        return FrameMemory(
            torch.cat([tokens[:, None], self.tokens[:, :-1]], dim=1),
            torch.cat([torch.ones_like(self.valid[:, :1]), self.valid[:, :-1]], dim=1),
        )


@dataclass(frozen=True)
class PastFrames:
    """The frames that a training batch remembers; each passes the towers once, however many rows remember it.

    Attributes:
        images: uint8 [F, V, 3, H, W], remembered frames that are not themselves rows of the batch.
        batch_row: int64 [F], a row of the batch with the instruction of each frame.
        frame_index: int64 [B, H], the index of the frame k + 1 decisions back, among the B frames of the batch followed
            by these F; -1 before the start of the episode.
    """

    images: torch.Tensor
    batch_row: torch.Tensor
    frame_index: torch.Tensor


LABELLED_POINTS = 2
"""Points of a grounding label, in the arm's frame and in each view: the instructed object and its goal."""


class History(nn.Module):
    """Attention of the current tokens to remembered frames, in a residual that starts at zero.

    Keys and values of a frame are computed once, at its own decision, and kept. `recall` predicts labelled points
    [B, 3 * LABELLED_POINTS] from a token, in decimetres in the arm's frame.

    Args:
        width: Width of the tokens, D.
        heads: Attention heads.
        frames: Remembered frames, H.
        selected: Frames that each head attends to token by token.
    """

    def __init__(self, *, width: int, heads: int, frames: int, selected: int) -> None:
        super().__init__()
        self.heads, self.frames, self.selected = heads, frames, selected
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.remembered_norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.age = nn.Parameter(torch.empty(1, frames, 1, 2 * width))
        # Without a bias, so that an empty memory adds nothing.
        self.output = nn.Linear(width, width, bias=False)
        self.recall = nn.Linear(width, 3 * LABELLED_POINTS)
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Initialize the parameters so that the policy computes the same actions as without this part."""
        for part in (self.norm, self.query, self.remembered_norm, self.key_value, self.output, self.recall):
            part.reset_parameters()
        nn.init.normal_(self.age, std=0.02)
        nn.init.zeros_(self.output.weight)

    def encode_frames(self, visual: torch.Tensor) -> torch.Tensor:
        """Return the keys and values [B, N, 2D] of frames from their visual tokens [B, N, D]."""
        return self.key_value(self.remembered_norm(visual))

    def empty_memory(self, batch: int, tokens: int) -> FrameMemory:
        """Return the empty memory of B = `batch` new episodes, for frames of N = `tokens` tokens."""
        shape = (batch, self.frames, tokens, self.age.shape[-1])
        return FrameMemory(self.age.new_zeros(shape), self.age.new_zeros(shape[:2], dtype=torch.bool))

    def forward(self, current_tokens: torch.Tensor, memory: FrameMemory) -> torch.Tensor:
        """Return the current tokens [B, Q, D] plus what they read from memory."""
        query = self.query(self.norm(current_tokens)).unflatten(-1, (self.heads, -1))  # [B, Q, heads, d]
        frame_tokens = torch.where(memory.valid[..., None, None], memory.tokens + self.age, 0.0).to(query.dtype)
        key, value = (
            part.flatten(0, 2).unflatten(-1, (self.heads, -1)) for part in frame_tokens.chunk(2, dim=-1)
        )  # each [B * H * N, heads, d]
        attention_output = self._attend(query, key, value, memory.valid)  # [B, Q, D]
        return current_tokens + self.output(attention_output)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Attend with queries [B, Q, heads, d] to keys and values [B * H * N, heads, d]; return [B, Q, D]."""
        batch, queries = query.shape[:2]
        tokens = len(key) // valid.numel()
        blocks = cut_blocks(len(key), tokens, lengths=batch, longest=self.frames * tokens, device=key.device)
        # All tokens of a decision select together, so that a head reads at most `selected` frames.
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
    """Return the L1 error of recalled points, a scalar in decimetres: the mean over axes, the sum over points.

    Args:
        recalled_points: Predicted points [B, 3 * LABELLED_POINTS], in decimetres.
        points: Labels [B, 3 * LABELLED_POINTS], in metres; labels that are not finite do not count.
    """
    error = (recalled_points.float() - 10 * points.nan_to_num()).abs() * points.isfinite()  # [B, 3 * LABELLED_POINTS]
    return error.mean() * LABELLED_POINTS
