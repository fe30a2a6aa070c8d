"""Pointing: positions that are exact where a map is sharp, and a loss whose minimum is the label."""

import pytest
import torch

from saccade.perception.pointing import Pointing, pointing_loss


def pointing_that_copies(points):
    """Pointing whose maps are the features themselves."""
    pointing = Pointing(points, points, 4)
    with torch.no_grad():
        pointing.maps.weight.copy_(torch.eye(points))
        pointing.maps.bias.zero_()
    return pointing


def positions_of(logits):
    """Expected positions [B, points, 2] of maps [B, points, rows, columns]."""
    return pointing_that_copies(logits.shape[1])(logits.permute(0, 2, 3, 1))[1]


def best_maps(labels, rows, columns):
    """Return the maps [B, 1, rows, columns] at which the loss has no slope, for labels [B, 1, 2]."""
    flat = torch.zeros(len(labels), 1, rows, columns, requires_grad=True)
    pointing_loss(flat, labels).backward()
    # The slope of a cross-entropy is what the map says less what it is told.
    told = 1 / (rows * columns) - flat.grad * len(labels)
    return told.clamp(min=1e-9).log()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (3, 0), (3, 7)])
def test_a_peaked_map_points_at_the_centre_of_its_cell(row, column):
    logits = torch.zeros(1, 1, 4, 8)
    logits[0, 0, row, column] = 100.0
    expected = torch.tensor([(column + 0.5) / 8, (row + 0.5) / 4])
    torch.testing.assert_close(positions_of(logits)[0, 0], expected)


def test_a_flat_map_points_at_the_middle():
    torch.testing.assert_close(positions_of(torch.zeros(2, 3, 4, 6)), torch.full((2, 3, 2), 0.5))


def test_the_token_tells_where_each_map_points_and_how_sharply():
    pointing = pointing_that_copies(2)
    grid = torch.zeros(1, 2, 4, 2)
    grid[0, 0, 0, 0] = 100.0
    seen = []
    pointing.token.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    token, positions, logits = pointing(grid)
    assert token.shape == (1, 4) and positions.shape == (1, 2, 2) and logits.shape == (1, 2, 2, 4)
    torch.testing.assert_close(seen[0], torch.tensor([[-0.75, -0.5, 1.0, 0.0, 0.0, 8**-0.5]]))


def test_the_loss_is_least_where_the_expected_position_is_the_label():
    # A grid of 4 x 5, up to half a cell from the rim.
    generator = torch.Generator().manual_seed(0)
    labels = 0.13 + 0.74 * torch.rand(40, 1, 2, generator=generator)
    logits = best_maps(labels, 4, 5)
    torch.testing.assert_close(positions_of(logits), labels, atol=1e-5, rtol=0)
    worse = logits + torch.randn(logits.shape, generator=generator)
    for row in range(len(labels)):
        here = slice(row, row + 1)
        assert pointing_loss(logits[here], labels[here]) < pointing_loss(worse[here], labels[here])


def test_a_label_at_the_rim_is_given_to_the_outermost_cell():
    logits = torch.zeros(1, 1, 2, 4)
    logits[0, 0, 0, 0] = 100.0
    assert pointing_loss(logits, torch.tensor([[[0.01, 0.02]]])) == 0


def test_labels_out_of_view_add_no_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    seen, infinite, absent = [0.3, 0.6], [float("inf"), 0.5], [float("nan")] * 2
    labels = torch.tensor([[seen, [1.2, 0.5]], [[0.5, -0.1], infinite]])
    loss = pointing_loss(logits, labels)
    torch.testing.assert_close(loss, pointing_loss(logits[:1], torch.tensor([[seen]])))
    torch.testing.assert_close(loss, pointing_loss(logits, torch.tensor([[seen, absent], [absent, absent]])))
    loss.backward()
    assert logits.grad[0, 0].any()
    assert not logits.grad[0, 1:].any() and not logits.grad[1].any()


def test_no_label_in_view_gives_zero_loss_and_gradient():
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = pointing_loss(logits, torch.full((2, 2, 2), -1.0))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_maps_without_a_label_get_no_gradient():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    pointing_loss(logits, torch.tensor([[[0.5, 0.5], [0.2, 0.7]]])).backward()
    assert logits.grad[0, :2].any() and not logits.grad[0, 2:].any()
