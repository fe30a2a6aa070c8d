"""A captured policy replays what the plain one computes; without a GPU a function stands in for the graph."""

import dataclasses
import itertools

import pytest
import torch

from saccade.errors import InputError
from saccade.policy.network.architecture import Architecture
from saccade.policy.network.capture import CapturedPolicy
from saccade.policy.network.tensor_tree import list_tensors, map_tensors
from saccade.policy.profiling.cost import InputSizes

SIZES = InputSizes(image_size=32)
CHOICES = {
    "tiny": {},
    "text first": {"sequence": ("text", "visual", "state", "slots"), "positions": "counted"},
    "pretrained": {"towers": ("vit_tiny_patch16_224.augreg_in21k",) * 2, "readout": "slots"},
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def record_by_hand(run):
    """Stand in for a CUDA graph: replaying computes again and writes the results where the first ones lay."""
    output = run()

    def replay():
        for old, new in zip(list_tensors(output), list_tensors(run()), strict=True):
            old.copy_(new)

    return output, replay


@pytest.fixture(params=CHOICES.values(), ids=CHOICES)
def architecture(request, small_architecture):
    return Architecture(**{**vars(small_architecture), **request.param})


@pytest.fixture
def model(architecture):
    torch.manual_seed(0)
    model = SIZES.build(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def told(model, seed):
    """Return an instruction's tokens, of another length for another seed."""
    tokens = SIZES.tokens(model.architecture)
    tokens[:, 1 : 4 + seed] = torch.arange(3 + seed) + 40 * seed
    return tokens


def given(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randn(1, 8, generator=generator)


def check_against_eager(model, capture_graph, device, tolerance):
    model = model.to(device)

    def encode_instruction(seed):
        return model.encode_instruction(told(model, seed).to(device))

    with torch.inference_mode():
        images, state = (each.to(device) for each in given(0))
        captured = CapturedPolicy(model, images, encode_instruction(0), state, **capture_graph)
        decisions = []
        for seed, instruction in ((1, 0), (2, 0), (2, 3), (3, 1)):
            images, state = (each.to(device) for each in given(seed))
            captured.set_instruction(encode_instruction(instruction))
            decision = captured.decide(images, state)
            wanted = model.decide(images, encode_instruction(instruction), state)
            scale = wanted.actions.abs().max()
            assert (decision.actions - wanted.actions).abs().max() <= tolerance * scale
            decisions.append(decision.actions)
    # Each decision is its own: the later ones did not overwrite it.
    assert all(not first.equal(second) for first, second in itertools.pairwise(decisions))
    return captured


def test_replays_follow_images_state_and_instruction(model):
    check_against_eager(model, {"capture_graph": record_by_hand}, "cpu", 1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_cuda_graph_decides_as_the_plain_network_does(model, dtype, tolerance):
    check_against_eager(model.to(dtype), {}, "cuda", tolerance)


def test_inputs_are_not_modified(model):
    images, state = given(0)
    with torch.inference_mode():
        first, second = model.encode_instruction(told(model, 0)), model.encode_instruction(told(model, 3))
        before = [tensor.clone() for tensor in list_tensors(first)]
        captured = CapturedPolicy(model, images, first, state, capture_graph=record_by_hand)
        captured.set_instruction(second)
        captured.decide(*given(1))
    assert all(old.equal(new) for old, new in zip(before, list_tensors(first), strict=True))
    assert images.equal(given(0)[0]) and state.equal(given(0)[1])


def test_other_shapes_are_refused(model):
    images, state = given(0)
    with torch.inference_mode():
        instruction_plan = model.encode_instruction(told(model, 0))
        captured = CapturedPolicy(model, images, instruction_plan, state, capture_graph=record_by_hand)
        with pytest.raises(InputError, match="images of a captured policy"):
            captured.decide(images[:, :1], state)
        with pytest.raises(InputError, match="state of a captured policy"):
            captured.decide(images, state.expand(2, -1))
        with pytest.raises(InputError, match="instruction of a captured policy"):
            captured.set_instruction(model.encode_instruction(told(model, 0).expand(2, -1)))


def test_capture_on_the_cpu_is_refused(model):
    images, state = given(0)
    with pytest.raises(InputError, match="CUDA device"):
        CapturedPolicy(model, images, model.encode_instruction(told(model, 0)), state)


@dataclasses.dataclass(frozen=True)
class Nested:
    numbers: dict
    parts: tuple
    nothing: None = None


def test_structures_are_walked_and_rebuilt():
    value = Nested({2: torch.ones(1), 1: [torch.zeros(2), "text"]}, (torch.ones(3), None))
    doubled = map_tensors(value, lambda tensor: 2 * tensor)
    assert [tuple(each.shape) for each in list_tensors(value)] == [(2,), (1,), (3,)]
    assert doubled.numbers[2] == 2 and doubled.numbers[1][1] == "text" and doubled.parts[1] is None
    assert isinstance(doubled.parts, tuple) and doubled.nothing is None
