"""Checkpoints to decoders: one tensor is read at a time, straight to where it stays.

Weights of safetensors that keep their type are not even copied: they are the mapped pages of the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import BadModelFile
from shoestring.layers.packed_linear import PackedEmbedding, PackedLinear
from shoestring.layers.reordered_linear import ReorderedLinear
from shoestring.models.built_in import BUILT_IN, built_in_file
from shoestring.models.checkpoint import Checkpoint, LazyTensors, PackedTensors, open_checkpoint
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig, base_type
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.gguf_tokenizer import gguf_tokenizer
from shoestring.models.layer_layout import LayerKind
from shoestring.models.mapped_file import shown
from shoestring.notices import notice_fallback

_PARTS = ("*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors")
_DERIVED = ".rotary_emb.inv_freq"  # stored by old versions of transformers; follows from the config
_MIN_TENSORS_PER_LAYER = 4
_EXACT = (".mixer.A_log", ".mixer.D")  # decays drift in half precision
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_model(name: str) -> Path:
    """The file or folder of a model. One that is on the Hugging Face hub is downloaded, unless it was before.

    name: a built-in alias, a .gguf file, a folder of the Hugging Face layout, a Hugging Face id.
    Raises: FileNotFoundError if there is no such model; MissingData if a built-in one is not installed.
    """
    if name in BUILT_IN:
        return built_in_file(name)
    path = Path(name)
    if path.exists():
        return path
    if path.is_absolute() or name.count("/") != 1 or name.startswith(".") or path.suffix == ".gguf":
        raise FileNotFoundError(
            f"no model {name!r}: it is no file or folder here, no Hugging Face id (owner/name) and no "
            f"built-in ({', '.join(BUILT_IN)})"
        )
    return _from_hub(name)


def load_decoder(
    source: str | Path | Checkpoint, dtype: torch.dtype | None = None, *, packed: bool = False
) -> Decoder:
    """The decoder of a checkpoint, in evaluation mode. At most one tensor is in memory twice at any moment.

    source: what `open_checkpoint` takes, or what it gave. dtype: of the weights; by default that of the
    stored embedding, and float32 for GGUF (whose blocks are exact in it). packed: matrices that a GGUF file
    stores in Q4_0 to Q8_0 or as K-quants (Q2_K to Q6_K), or a folder in the words of AWQ or GPTQ, keep their
    codes, in packed layers. `config` is one of transformers.

    Raises: FileNotFoundError, BadModelFile as `open_checkpoint` does; BadModelFile naming what is wrong where
    the architecture is not known or tensors are missing, of another shape, or have no place in the model.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    tensors, path = checkpoint.tensors, checkpoint.path
    _require_plausible(checkpoint)
    try:
        cfg = DecoderConfig.from_dict(checkpoint.config)
        names = _check_tensors(checkpoint, cfg)
    except BadModelFile as error:
        raise BadModelFile(f"{path}: {first_line(error)}") from error
    dtype = dtype or _own_dtype(checkpoint)
    kept = {
        name
        for name in names
        if packed and isinstance(tensors, PackedTensors) and tensors.can_stay_packed(name)
    }
    weights = _Cast(tensors, names, dtype, kept)
    decoder = Decoder.from_weights(cfg, weights, config=transformers_config(checkpoint, dtype))
    if isinstance(tensors, PackedTensors):
        _put_packed(decoder, tensors, kept)
    decoder.generation_config = _generation_config(checkpoint)
    return decoder


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a GGUF file or a folder, as one of transformers. Raises: BadModelFile."""
    path = Path(path)
    if not path.is_dir():
        return gguf_tokenizer(GGUFFile(path))
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise BadModelFile(f"{path}: its tokenizer cannot be read: {first_line(error)}") from error


def check_tokenizer(tokenizer: Any, vocab_size: int, path: str | Path) -> None:
    """That the model has a row of the embedding for every token of the text.

    Some published tokenizers name tokens for images beyond a model that has none; those are announced.
    Raises: BadModelFile if it lacks rows for tokens that plain text is cut into.
    """
    added = tokenizer.get_added_vocab()
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= vocab_size}
    plain = [token for token in beyond if token not in added]
    if plain:
        raise BadModelFile(
            f"{path}: tokenizer mismatch: it has {len(plain)} tokens beyond the {vocab_size} rows of the "
            f"embedding, such as {shown(plain[0])}; use the tokenizer of this model"
        )
    if beyond:
        names = ", ".join(shown(token) for token in sorted(beyond)[:3])
        notice_fallback(f"tokenizer of {path}", f"the model has no embedding for {names}; do not use them")


def transformers_config(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The config of a checkpoint as an object of transformers. Raises: BadModelFile if it refuses it."""
    from transformers import AutoConfig

    fields = {
        name: value for name, value in checkpoint.config.items() if name not in ("dtype", "torch_dtype")
    }
    fields["model_type"] = base_type(fields["model_type"])
    try:
        return AutoConfig.for_model(**fields, dtype=dtype)
    except Exception as error:  # its validation raises errors of its own
        raise BadModelFile(f"{checkpoint.path}: the config is not accepted: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Cast(Mapping[str, Tensor]):
    """Some of the tensors, in one type, each read when it is taken; of those `left_out` only the shape."""

    def __init__(
        self, tensors: LazyTensors, names: list[str], dtype: torch.dtype, left_out: set[str]
    ) -> None:
        self._tensors, self._names, self._dtype, self._left_out = tensors, names, dtype, left_out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._left_out:
            return torch.empty(self._tensors.shape(name), dtype=self._dtype, device="meta")
        exact = torch.promote_types(self._dtype, torch.float32)
        return self._tensors.read(name, exact if name.endswith(_EXACT) else self._dtype)


def _put_packed(decoder: Decoder, tensors: PackedTensors, names: set[str]) -> None:
    """Packed layers in the places of those whose weights are named."""
    for name in sorted(names):
        path = name.removesuffix(".weight")
        owner, _, leaf = path.rpartition(".")
        module, weight = decoder.get_submodule(path), tensors.packed(name)
        weight.dtype = decoder.model.norm.weight.dtype
        layer: nn.Module
        if isinstance(module, nn.Embedding):
            layer = PackedEmbedding(weight, module.padding_idx, decoder.cfg.embedding_scale)
            if decoder.cfg.tie_word_embeddings:
                head = PackedLinear(weight)
                head.borrow()
                decoder.lm_head = head
        else:
            assert isinstance(module, nn.Linear)
            layer = PackedLinear(weight, module.bias)
            if (order := tensors.column_order(name)) is not None:
                layer = ReorderedLinear(layer, order)
        setattr(decoder.get_submodule(owner), leaf, layer.eval())


def _require_plausible(checkpoint: Checkpoint) -> None:
    """Not even on the meta device is a model built that is larger than the file could be."""
    tensors, config = checkpoint.tensors, checkpoint.config
    layers = config.get("num_hidden_layers")
    layout = config.get("layout")
    if isinstance(layers, int) and isinstance(layout, str):
        layers -= layout.count(LayerKind.SKIPPED)
    if isinstance(layers, int) and layers * _MIN_TENSORS_PER_LAYER > len(tensors):
        raise BadModelFile(
            f"{checkpoint.path}: num_hidden_layers is {shown(layers)}, but there are {len(tensors)} tensors"
        )
    shapes = (tensors.shape(name) for name in tensors)
    longest = max((max(shape, default=1) for shape in shapes if 0 not in shape), default=1)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads"):
        value = config.get(name)
        if isinstance(value, int) and value > longest:
            raise BadModelFile(f"{checkpoint.path}: {name} is {shown(value)}, more than any tensor has rows")


def _check_tensors(checkpoint: Checkpoint, cfg: DecoderConfig) -> list[str]:
    """The names of the tensors that the model takes. Raises: BadModelFile naming what does not fit."""
    tensors = checkpoint.tensors
    needed = expected_shapes(cfg)
    if cfg.tie_word_embeddings:
        needed.pop("lm_head.weight")
    spare = {
        name for name in tensors if name.endswith(_DERIVED) or (name == "lm_head.weight")
    } - needed.keys()
    given = [name for name in tensors if name not in spare]
    _refuse("lacks", sorted(needed.keys() - set(given)), cfg)
    _refuse("holds, without a place in the model,", sorted(set(given) - needed.keys()), cfg)
    for name, shape in needed.items():
        if tensors.shape(name) != shape:
            raise BadModelFile(f"{name} is {tensors.shape(name)}, but the config asks for {shape}")
        if tensors.dtype(name) not in _FLOATS:
            raise BadModelFile(f"{name} is stored as {tensors.dtype(name)}, which are no plain weights")
    return given


def _refuse(what: str, names: list[str], cfg: DecoderConfig) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        listed = ", ".join(shown(name) for name in names[:3])
        raise BadModelFile(f"the file {what} {listed}{more} (for a model of type {cfg.model_type})")


def expected_shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters by name; a tied head among them."""
    try:
        empty = Decoder(cfg, device="meta")
    except (RuntimeError, OverflowError) as error:
        raise BadModelFile(f"the config asks for tensors larger than any: {first_line(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}


def _own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return torch.float32 if checkpoint.is_gguf else checkpoint.tensors.dtype("model.embed_tokens.weight")


def _generation_config(checkpoint: Checkpoint) -> Any:
    from transformers import GenerationConfig

    if checkpoint.generation_config is None:
        return None
    try:
        return GenerationConfig.from_dict(checkpoint.generation_config)
    except Exception as error:  # likewise
        raise BadModelFile(
            f"{checkpoint.path}: the generation config is not accepted: {first_line(error)}"
        ) from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(_PARTS)))
