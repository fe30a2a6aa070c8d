"""A pretrained tower: one vision transformer of timm, with FiLM by the instruction in every block.

After CogVLA's encoder-FiLM based aggregation routing (EFA; arXiv 2508.21046, section 3). As in Prismatic and OpenVLA,
the features are the second-to-last block's, without a final norm; the layers after that block are removed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.layers.attention import Attention
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
"""Prefixes of weights that a tower never has; a checkpoint may contain them."""


class PretrainedTower(nn.Module):
    """A vision transformer of timm that maps a view's image to tokens, after CogVLA's EFA (section 3).

    It is built without weights: call `load_pretrained`. Learned aggregation tokens attend to all patches, and only they
    are returned.

    Args:
        name: the model's name in timm.
        image_size: height and width of an image in pixels.
        aggregation_tokens: tokens M that are returned; 0 returns all patch tokens.
        condition_width: width C of FiLM's condition; 0 builds no FiLM.

    Attributes:
        width: width of a token.
        tokens: number of tokens that are returned.
        patches: number of patches P.
        depth: number of blocks that run.
        mean: mean of the encoder's training images for each colour, as a fraction of 255.
        std: standard deviation of the encoder's training images for each colour, as a fraction of 255.
        checkpointing: recompute each block's activations in the backward pass to save memory.

    Raises:
        InputError: timm has no such model, it is no plain vision transformer, or the image size does not fit.
    """

    def __init__(self, name: str, *, image_size: int, aggregation_tokens: int, condition_width: int) -> None:
        super().__init__()
        self.name, self.image_size = name, image_size
        encoder = _create_encoder(name, image_size)
        self.depth = len(_blocks_of(encoder)) - 1
        encoder.prune_intermediate_layers([self.depth - 1], prune_norm=True, prune_head=True)
        self.encoder = encoder
        self.width, self.patches = encoder.embed_dim, encoder.patch_embed.num_patches
        self.tokens = aggregation_tokens or self.patches
        pretrained = cast("dict[str, Any]", encoder.pretrained_cfg)
        self.mean, self.std = pretrained["mean"], pretrained["std"]
        self.checkpointing = False
        # CogVLA starts them at a standard deviation of 1, about fifty times that of the patch embeddings.
        aggregation = 0.02 * torch.randn(1, aggregation_tokens, self.width)
        self.aggregation = nn.Parameter(aggregation) if aggregation_tokens else None
        self.film = nn.ModuleList(
            FiLM(condition_width, self.width) for _ in range(self.depth if condition_width else 0)
        )

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """Return the modulation of each block under a condition [B, C]; an empty list without FiLM."""
        return [film(condition) for film in self.film]

    def forward(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Map images [B, 3, H, W] in 0 to 255 to tokens [B, M, width], or [B, P, width] without aggregation."""
        tokens = self._run_blocks(self.depth, self._embed(images), modulations)
        return tokens[:, -self.tokens :]

    def attention_map(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Return the attention weights of the aggregation tokens over patches in the last block; for inspection.

        Args:
            images: [B, 3, H, W] in 0 to 255.
            modulations: from `modulations`.

        Returns:
            Weights [B, M, P], averaged over heads. The rest of a row's weight is on prefix and aggregation tokens.

        Raises:
            InputError: the tower has no aggregation tokens, or its attention is no plain softmax.
        """
        block = _blocks_of(self.encoder)[-1]
        if self.aggregation is None or type(block.attn) is not Attention:
            got = "none" if self.aggregation is None else f"{type(block.attn).__name__} in {self.name}"
            fix = "Set architecture.aggregation_tokens to 1 or more, and choose a tower with plain attention."
            raise InputError("attention map", got=got, expected="aggregation tokens that attend to patches", fix=fix)
        tokens = self._run_blocks(self.depth - 1, self._embed(images), modulations)
        attention = block.attn
        projected = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, _ = (part.transpose(1, 2) for part in projected.unbind(2))  # [B, heads, n, width / heads]
        query, key = attention.q_norm(query[:, :, -self.tokens :]), attention.k_norm(key)
        scores = attention.scale * query.float() @ key.float().transpose(-1, -2)  # [B, heads, M, n]
        attention_weights = scores.softmax(-1).mean(1)  # [B, M, n]
        prefix = self.encoder.num_prefix_tokens
        return attention_weights[..., prefix : prefix + self.patches]

    def load_pretrained(self, source: str) -> None:
        """Load pretrained weights; position embeddings of another image size are resampled, and nothing is unpickled.

        Args:
            source: `hub` for the weights that timm names, or a safetensors file, or a folder that contains one.

        Raises:
            InputError: the source cannot be read, or the weights belong to another model.
        """
        found = self._download_weights() if source == "hub" else _read_weights_file(Path(source))
        # Only names and shapes of the full model are needed: build it without memory.
        with torch.device("meta"):
            full_model = timm.create_model(self.name, pretrained=False, num_classes=0, img_size=self.image_size)
        full_model = cast("VisionTransformer", full_model)
        what = f"weights of {self.name} from {source}"
        fix = f"Use the weights of {self.name}, or set {TOWERS_FIELD} to the tower that these weights belong to."
        try:
            found = checkpoint_filter_fn(found, full_model, adapt_layer_scale=True)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                what, got=f"those of another model ({error})", expected=f"those of {self.name}", fix=fix
            ) from None
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
            raise InputError(what, got=got, expected=f"{len(wanted)} weights of matching names and shapes", fix=fix)
        self.encoder.load_state_dict({name: found[name] for name in self.encoder.state_dict()})

    def _download_weights(self) -> dict[str, torch.Tensor]:
        repository = cast("dict[str, Any]", self.encoder.pretrained_cfg).get("hf_hub_id")
        fix = f"Check the connection, or download {WEIGHTS_FILE} and use its folder instead of `hub`."
        expected = f"{WEIGHTS_FILE} on the Hugging Face hub"
        if not repository:
            raise InputError(f"weights of {self.name}", got="none that timm names", expected=expected, fix=fix)
        try:
            # Name the file: timm would otherwise fall back to a pickle.
            return load_state_dict_from_hf(repository, filename=WEIGHTS_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            got = f"{type(error).__name__} for {repository}"
            raise InputError(f"weights of {self.name}", got=got, expected=expected, fix=fix) from error

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens that enter the first block, [B, n, width]: prefix, patches, aggregation."""
        size = (3, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != size:
            expected = f"(B, {', '.join(map(str, size))})"
            raise InputError(
                "images", got=tuple(images.shape), expected=expected, fix=f"Resize them to {self.image_size} pixels."
            )
        # Scalars instead of buffers: they stay exact when the module is cast to bfloat16.
        colours = zip(images.float().unbind(1), self.mean, self.std, strict=True)
        normalised = torch.stack([plane * (1 / (255 * std)) - mean / std for plane, mean, std in colours], dim=1)
        # The same steps as before the blocks in timm's forward_features.
        tokens = self.encoder.patch_embed(normalised.to(self.encoder.patch_embed.proj.weight.dtype))
        tokens = self.encoder.norm_pre(self.encoder.patch_drop(self.encoder._pos_embed(tokens)))  # noqa: SLF001 (timm has no public name)
        if self.aggregation is None:
            return tokens
        return torch.cat([tokens, self.aggregation.expand(len(tokens), -1, -1).to(tokens.dtype)], dim=1)

    def _run_blocks(self, blocks: int, tokens: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Run tokens [B, n, width] through the first `blocks` blocks."""
        block_modulations = modulations[:blocks] if self.film else [None] * blocks
        for block, modulation in zip(_blocks_of(self.encoder)[:blocks], block_modulations, strict=True):
            if self.checkpointing and self.training:
                recomputed = checkpoint(_run_modulated_block, block, tokens, modulation, use_reentrant=False)
                tokens = cast("torch.Tensor", recomputed)
            else:
                tokens = _run_modulated_block(block, tokens, modulation)
        return tokens


def _blocks_of(encoder: VisionTransformer) -> list[Block]:
    """Return the encoder's blocks; timm types them as modules."""
    return cast("list[Block]", list(cast("nn.Sequential", encoder.blocks)))


def _run_modulated_block(block: Block, tokens: torch.Tensor, modulation: Modulation | None) -> torch.Tensor:
    """Run a block of timm, with FiLM on the residual stream between attention and feed-forward."""
    tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    if modulation is not None:
        tokens = modulate(tokens, modulation).to(tokens.dtype)
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def _create_encoder(name: str, image_size: int) -> VisionTransformer:
    """Build timm's full model without weights; raise InputError unless it is a plain vision transformer."""
    what, expected = TOWERS_FIELD, "a vision transformer of timm with plain blocks"
    if not timm.is_model(name):
        raise InputError(what, got=repr(name), expected=expected, fix=_suggest_tower(name))
    if image_size < 1:
        fix = "Set the images' size to that of the tower, such as 224."
        raise InputError(what, got=f"{name} at {image_size} pixels", expected="1 pixel or more", fix=fix)
    try:
        encoder = timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(what, got=f"{name} ({error})", expected=expected, fix=_suggest_tower(name)) from None
    if not isinstance(encoder, VisionTransformer) or any(type(block) is not Block for block in _blocks_of(encoder)):
        kind = type(_blocks_of(encoder)[0] if isinstance(encoder, VisionTransformer) else encoder).__name__
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
    """Read a safetensors file, or the one in a folder."""
    what, expected = f"weights {path}", "a safetensors file, or a folder that contains one"
    fix = "Use the path of such a file or folder, or `hub`."
    inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    files = [file for file in inside if file.name == WEIGHTS_FILE] or inside
    if len(files) != 1:
        shown = _first_few(file.name for file in (files or path.iterdir())) or "nothing"
        raise InputError(what, got=f"a folder that contains {shown}", expected=expected, fix=fix)
    if files[0].suffix != ".safetensors":
        got = f"a {files[0].suffix} file" if path.exists() else "nothing there"
        fix = "Convert them to safetensors first: other formats may run code when loaded." if path.exists() else fix
        raise InputError(what, got=got, expected=expected, fix=fix)
    try:
        return load_state_dict(str(files[0]))
    except FileNotFoundError:
        raise InputError(what, got="nothing there", expected=expected, fix=fix) from None
    except (OSError, SafetensorError) as error:
        raise InputError(
            what, got=f"{files[0].name} ({error})", expected=expected, fix="Download or copy the file again."
        ) from None


def _first_few(names: Iterable[str]) -> str:
    """Return the first three of `names` and the number of the others."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
