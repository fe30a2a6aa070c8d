"""A pretrained tower: one vision transformer of timm, which the instruction steers in every block.

After CogVLA's encoder-FiLM based aggregation routing (EFA; section 3 of the paper). As in Prismatic and OpenVLA, the
features leave from the second-to-last block without a final norm; what follows that block is not even kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.layers import Attention
from timm.models import load_state_dict, load_state_dict_from_hf
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, suggest
from .film import FiLM, Modulation, modulate

TOWERS_FIELD = "architecture.towers"
SUGGESTED_TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224.webli")
WEIGHTS_FILE = "model.safetensors"
UNUSED_WEIGHT_PREFIXES = ("norm.", "fc_norm.", "attn_pool.", "head")
"""How the names of weights begin that a tower never has: checkpoints may hold them or not."""


class PretrainedTower(nn.Module):
    """Turn a view's picture into tokens with a vision transformer of timm.

    It is built without weights: see `load_pretrained`. Learned aggregation tokens join the patches and gather from
    them by full attention, and they alone leave; with `aggregation_tokens=0` all patch tokens leave. `condition` is the
    width of the condition that FiLM listens to; 0 builds none. Raises InputError for a name or an image size that
    cannot be built so.

    Attributes: `width` of a token, `tokens` that leave, `patches` (P), `depth` in blocks that run, `mean` and `std` of
    the colours that the encoder was trained on, as fractions of white; `checkpointing` computes each block's
    activations again in the backward pass instead of keeping them.
    """

    def __init__(self, name: str, *, image_size: int, aggregation_tokens: int, condition: int) -> None:
        super().__init__()
        self.name, self.image_size = name, image_size
        encoder = _create_encoder(name, image_size)
        self.depth = len(encoder.blocks) - 1
        encoder.prune_intermediate_layers([self.depth - 1], prune_norm=True, prune_head=True)
        self.encoder = encoder
        self.width, self.patches = encoder.embed_dim, encoder.patch_embed.num_patches
        self.tokens = aggregation_tokens or self.patches
        self.mean, self.std = encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]
        self.checkpointing = False
        # CogVLA starts them at a standard deviation of 1, some fifty times the embeddings that they stand beside.
        aggregation = 0.02 * torch.randn(1, aggregation_tokens, self.width)
        self.aggregation = nn.Parameter(aggregation) if aggregation_tokens else None
        self.film = nn.ModuleList(FiLM(condition, self.width) for _ in range(self.depth if condition else 0))

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """Return the modulation of every block that runs under a condition [B, C]; none without FiLM."""
        return [film(condition) for film in self.film]

    def forward(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Map pictures [B, 3, H, W] of 0 to 255 to tokens [B, M, width], or [B, P, width] without aggregation."""
        tokens = self._run_blocks(self.depth, self._embed(images), modulations)
        return tokens[:, -self.tokens :]

    def attention_map(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Return how much each token that leaves attends to each patch in the last block that runs, [B, M, P].

        Averaged over heads; for inspection. A row's rest went to prefix and aggregation tokens. Raises InputError
        for a tower without aggregation tokens, and for attention that is no plain softmax.
        """
        block = self.encoder.blocks[-1]
        if self.aggregation is None or type(block.attn) is not Attention:
            got = "none" if self.aggregation is None else f"{type(block.attn).__name__} in {self.name}"
            fix = "Set architecture.aggregation_tokens, and choose a tower with plain attention."
            raise InputError("attention map", got=got, expected="aggregation tokens that attend to patches", fix=fix)
        tokens = self._run_blocks(self.depth - 1, self._embed(images), modulations)
        projected = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, block.attn.num_heads, -1))
        query, key, _ = (part.transpose(1, 2) for part in projected.unbind(2))
        query, key = block.attn.q_norm(query[:, :, -self.tokens :]), block.attn.k_norm(key)
        attention_weights = (block.attn.scale * query.float() @ key.float().transpose(-1, -2)).softmax(-1).mean(1)
        prefix = self.encoder.num_prefix_tokens
        return attention_weights[..., prefix : prefix + self.patches]

    def load_pretrained(self, source: str) -> None:
        """Take over weights: `hub` for those that timm names, else a safetensors file or a folder that holds one.

        Another image size's position embeddings are resampled. Nothing is unpickled. Raises InputError for a source
        that cannot be read, and for the weights of another model.
        """
        found = self._download_weights() if source == "hub" else _read_weights_file(Path(source))
        # Only names and shapes of the whole model matter here, so it gets no memory.
        with torch.device("meta"):
            full_model = timm.create_model(self.name, pretrained=False, num_classes=0, img_size=self.image_size)
        what = f"weights of {self.name} from {source}"
        fix = f"Give the weights of {self.name}, or name the tower that these belong to in {TOWERS_FIELD}."
        try:
            found = checkpoint_filter_fn(found, full_model, adapt_layer_scale=True)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(what, got=f"others ({error})", expected="its own", fix=fix) from None
        wanted = {
            name: value
            for name, value in full_model.state_dict().items()
            if not name.startswith(UNUSED_WEIGHT_PREFIXES)
        }
        found = {name: value for name, value in found.items() if not name.startswith(UNUSED_WEIGHT_PREFIXES)}
        mismatches = {
            "missing": wanted.keys() - found.keys(),
            "left over": found.keys() - wanted.keys(),
            "of another shape": {n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape},
        }
        if any(mismatches.values()):
            got = "; ".join(f"{kind}: {_first_few(names)}" for kind, names in mismatches.items() if names)
            raise InputError(what, got=got, expected=f"{len(wanted)} weights that fit", fix=fix)
        self.encoder.load_state_dict({name: found[name] for name in self.encoder.state_dict()})

    def _download_weights(self) -> dict[str, torch.Tensor]:
        repository = self.encoder.pretrained_cfg.get("hf_hub_id")
        fix = "Check the connection, or download its safetensors and give their folder."
        expected = f"{WEIGHTS_FILE} on the Hugging Face hub"
        if not repository:
            raise InputError(f"weights of {self.name}", got="none that timm names", expected=expected, fix=fix)
        try:
            # The file is named because timm would otherwise fall back to a pickle.
            return load_state_dict_from_hf(repository, filename=WEIGHTS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            got = f"{type(error).__name__} for {repository}"
            raise InputError(f"weights of {self.name}", got=got, expected=expected, fix=fix) from error

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens that enter the first block: prefix, patches, aggregation."""
        size = (3, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != size:
            expected = f"(B, {', '.join(map(str, size))})"
            raise InputError("pictures", got=tuple(images.shape), expected=expected, fix="Resize them first.")
        # Scalars rather than buffers: these stay exact when the module's weights are cast to bf16.
        colours = zip(images.float().unbind(1), self.mean, self.std, strict=True)
        normalised = torch.stack([plane * (1 / (255 * std)) - mean / std for plane, mean, std in colours], dim=1)
        # The parts that timm's own forward_features calls before the blocks, in its order.
        tokens = self.encoder.patch_embed(normalised.to(self.encoder.patch_embed.proj.weight.dtype))
        tokens = self.encoder.norm_pre(self.encoder.patch_drop(self.encoder._pos_embed(tokens)))
        if self.aggregation is None:
            return tokens
        return torch.cat([tokens, self.aggregation.expand(len(tokens), -1, -1).to(tokens.dtype)], dim=1)

    def _run_blocks(self, blocks: int, tokens: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Run tokens [B, n, width] through the first `blocks` blocks."""
        steered = modulations[:blocks] if self.film else [None] * blocks
        for block, modulation in zip(self.encoder.blocks[:blocks], steered, strict=True):
            if self.checkpointing and self.training:
                tokens = checkpoint(_run_modulated_block, block, tokens, modulation, use_reentrant=False)
            else:
                tokens = _run_modulated_block(block, tokens, modulation)
        return tokens


def _run_modulated_block(block: Block, tokens: torch.Tensor, modulation: Modulation | None) -> torch.Tensor:
    """Run timm's block with the whole residual stream modulated between attention and feed-forward."""
    tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    if modulation is not None:
        tokens = modulate(tokens, modulation).to(tokens.dtype)
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _create_encoder(name: str, image_size: int) -> VisionTransformer:
    """Build timm's model, whole and without weights; raise InputError unless it is a plain vision transformer."""
    what, expected = TOWERS_FIELD, "a vision transformer of timm with plain blocks"
    if not timm.is_model(name):
        raise InputError(what, got=repr(name), expected=expected, fix=_suggest_tower(name))
    if image_size < 1:
        raise InputError(what, got=f"{name} at {image_size} pixels", expected="at least 1", fix="Set image_size.")
    try:
        encoder = timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(what, got=f"{name} ({error})", expected=expected, fix=_suggest_tower(name)) from None
    if not isinstance(encoder, VisionTransformer) or any(type(block) is not Block for block in encoder.blocks):
        kind = type(encoder.blocks[0] if isinstance(encoder, VisionTransformer) else encoder).__name__
        raise InputError(what, got=f"{name}, made of {kind}", expected=expected, fix=_suggest_tower(name))
    patch = max(encoder.patch_embed.patch_size)
    if image_size % patch:
        near = image_size // patch * patch
        fix = f"Set image_size to {f'{near} or ' if near else ''}{near + patch}, or choose another tower."
        got = f"{name} at {image_size} pixels"
        raise InputError(what, got=got, expected=f"a multiple of its patch, {patch} pixels", fix=fix)
    return encoder


def _suggest_tower(name: str) -> str:
    module = "vision_transformer"
    names = {*timm.list_models(module=module), *timm.list_models(module=module, pretrained=True)} - {name}
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return suggest(name, near or SUGGESTED_TOWERS)


def _read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or the one of a folder."""
    what, expected, fix = (
        f"weights {path}",
        "a safetensors file, or a folder that holds one",
        "Give its path, or `hub`.",
    )
    inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    files = [file for file in inside if file.name == WEIGHTS_FILE] or inside
    if len(files) != 1:
        shown = _first_few(file.name for file in (files or path.iterdir())) or "nothing"
        raise InputError(what, got=f"a folder that holds {shown}", expected=expected, fix=fix)
    if files[0].suffix != ".safetensors":
        got = f"a {files[0].suffix} file" if path.exists() else "nothing there"
        fix = "Save them as safetensors first: other files may hold code." if path.exists() else fix
        raise InputError(what, got=got, expected=expected, fix=fix)
    try:
        return load_state_dict(str(files[0]))
    except FileNotFoundError:
        raise InputError(what, got="nothing there", expected=expected, fix=fix) from None
    except (OSError, SafetensorError) as error:
        raise InputError(what, got=f"{files[0].name} ({error})", expected=expected, fix="Copy it again.") from None


def _first_few(names: Iterable[str]) -> str:
    """Return the first few of `names` and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
