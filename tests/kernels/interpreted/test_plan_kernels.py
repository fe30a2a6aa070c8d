"""The plan's kernels, interpreted: each agrees with what torch does, over many random masks."""

import pytest
import torch

from saccade.kernels.plan import cut_blocks, cut_tiles, pool, tile_lists
from saccade.kernels.plan.index import cut_in_torch, lists_in_torch
from saccade.kernels.plan.pooling import means_in_torch

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")


def offsets(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize(
    ("lengths", "tokens", "size"),
    [([5, 0, 33, 16], 60, 16), ([], 3, 16), ([0], 0, 32), ([100, 90], 150, 64), ([1], 1, 7)],
)
def test_tiles(lengths, tokens, size):
    capacity = tokens // size + len(lengths) + 1
    tiles = cut_tiles(offsets(*lengths), tokens, size, capacity)
    assert tiles.equal(cut_in_torch(offsets(*lengths), tokens, size, capacity, -1))
    covered = torch.cat([torch.arange(start, start + length) for start, length, _ in tiles.tolist()])
    assert covered.equal(torch.arange(tokens))


@pytest.mark.parametrize("seed", range(6))
def test_lists_of_random_masks(seed):
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    channels, rows, columns = seed % 3 + 1, 70, 90
    low, level = integers(-3, 3, channels, rows).sort(1).values, integers(-3, 6, channels, columns).sort(1).values
    high = low + integers(0, 6, channels, rows)
    selection_bits = block = None
    if seed % 2:
        selection_bits, block = integers(-(2**31), 2**31 - 1, 2, rows, 2), integers(-1, 64, columns).sort().values
        selection_bits = selection_bits * (torch.rand(2, rows, 1, generator=generator) < 0.3)
    arguments = (low, high, level, offsets(20, 50), offsets(60, 27), selection_bits, block)
    found = tile_lists(*arguments, 16, 16, 8, 10)
    expected = lists_in_torch(*arguments, (16, 16), (8, 10))
    for result, reference in zip(found, expected, strict=True):
        assert result.equal(reference)
    met = found[2][..., 0] + found[2][..., 1]
    assert met.sum() == found[4].sum() > 0


def test_lists_of_more_tiles_than_are_looked_at_at_once():
    level = torch.arange(16 * 150, dtype=torch.int32)[None]
    arguments = (level[:, :16] * 0, level[:, :16] * 0 + 2000, level, offsets(16), offsets(2400), None, None)
    found = tile_lists(*arguments, 16, 16, 2, 151)
    for result, reference in zip(found, lists_in_torch(*arguments, (16, 16), (2, 151)), strict=True):
        assert result.equal(reference)
    assert found[2][0, 0].tolist() == [1, 125]


def test_means_of_blocks_and_their_gradient():
    tokens = torch.randn(90, 2, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    blocks = cut_blocks(90, 37, lengths=[50, 0, 33])
    means = pool(tokens, blocks)
    assert (means - means_in_torch(tokens.detach(), blocks.tiles)).abs().max() < 1e-6
    means.sin().sum().backward()
    exact = tokens.detach().double().requires_grad_()
    starts = [(0, 37), (37, 50), (50, 83), (83, 90)]
    torch.stack([exact[start:end].mean(0) for start, end in starts]).sin().sum().backward()
    assert (tokens.grad - exact.grad).abs().max() < 1e-6
