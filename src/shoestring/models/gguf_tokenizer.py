"""The tokenizer that a GGUF file describes, as one of transformers.

Two kinds: byte-level BPE, which cuts text by a rule that the file names (`tokenizer.ggml.pre`), and the BPE
of SentencePiece, whose merges follow from the scores of its tokens. The rules are those of the published
`tokenizer.json` of the models that gave them their names.
"""

from itertools import chain
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from shoestring.errors import BadModelFile
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.mapped_file import shown

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_EXPRESSION = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "tekken": _TEKKEN,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_PLAIN = ("gpt-2", "gpt2")
_STARTS_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe", "tekken")
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
_SPACE = "\u2581"  # how SentencePiece spells a space


def gguf_tokenizer(file: GGUFFile) -> Any:
    """A fast tokenizer of transformers, chat template included.

    Raises: BadModelFile if the file holds no tokenizer, one of an unknown kind, or a damaged one.
    """
    from transformers import PreTrainedTokenizerFast

    parts = _Parts(file)
    kind = parts.text("model")
    if kind == "gpt2":
        tokenizer = _byte_level(parts)
    elif kind == "llama":
        tokenizer = _sentencepiece(parts)
    else:
        raise BadModelFile(f"{file.path}: the tokenizer is of kind {shown(kind)}; known are gpt2 and llama")
    names = {f"{name}_token": token for name in _SPECIAL if (token := parts.special(name)) is not None}
    _add_whole_tokens(tokenizer, parts)
    _add_ends(tokenizer, parts, kind)
    result = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    if "tokenizer.chat_template" in file.metadata:
        result.chat_template = parts.text("chat_template", "tokenizer.")
    return result


class _Parts:
    """The fields of the tokenizer, checked against one another."""

    def __init__(self, file: GGUFFile) -> None:
        self.path, self.metadata = file.path, file.metadata
        self.tokens: list[str] = self.texts("tokens")
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise BadModelFile(
                f"{self.path}: the tokenizer has {len(self.tokens) - len(self.ids)} tokens twice"
            )
        self.types = self.numbers("token_type")
        architecture = self.metadata.get("general.architecture")
        self.is_gemma = isinstance(architecture, str) and architecture.startswith("gemma")

    def text(self, name: str, prefix: str = "tokenizer.ggml.", default: str | None = None) -> str:
        value = self.metadata.get(prefix + name, default)
        if not isinstance(value, str):
            raise BadModelFile(f"{self.path}: {prefix}{name} is {shown(value)} instead of a text")
        return value

    def texts(self, name: str) -> list[str]:
        values = self.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise BadModelFile(f"{self.path}: tokenizer.ggml.{name} is no list of texts")
        return values

    def numbers(self, name: str) -> list[int | float]:
        values = self.metadata.get(f"tokenizer.ggml.{name}")
        if values is None:
            return [0] * len(self.tokens)
        count = len(values) if hasattr(values, "dtype") else None
        if count != len(self.tokens):
            raise BadModelFile(f"{self.path}: tokenizer.ggml.{name} is no list of {len(self.tokens)} numbers")
        return values.tolist()

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise BadModelFile(
                f"{self.path}: tokenizer.ggml.{name} is {shown(value)} instead of true or false"
            )
        return value

    def special(self, name: str) -> str | None:
        """The text of a special token; None if the file names none."""
        key = f"tokenizer.ggml.{_SPECIAL[name]}_token_id"
        index = self.metadata.get(key)
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise BadModelFile(f"{self.path}: {key} is {shown(index)}, no token of {len(self.tokens)}")
        return self.tokens[index]


def _byte_level(parts: _Parts) -> Tokenizer:
    rule = parts.text("pre", default="gpt-2")
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if rule in _BY_EXPRESSION:
        steps = [
            pre_tokenizers.Split(Regex(_BY_EXPRESSION[rule]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif rule in _DIGITS_APART:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif rule not in _PLAIN:
        known = ", ".join((*_PLAIN, *_DIGITS_APART, *_BY_EXPRESSION))
        raise BadModelFile(f"{parts.path}: tokenizer.ggml.pre is {shown(rule)}; known are {known}")
    tokenizer = Tokenizer(BPE(parts.ids, _listed_merges(parts)))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _listed_merges(parts: _Parts) -> list[tuple[str, str]]:
    merges = []
    for text in parts.texts("merges"):
        left, space, right = text.partition(" ")
        if not space or not {left, right, left + right} <= parts.ids.keys():
            raise BadModelFile(f"{parts.path}: the merge {shown(text)} is not of two tokens to a third")
        merges.append((left, right))
    return merges


def _sentencepiece(parts: _Parts) -> Tokenizer:
    ids, scores = parts.ids, parts.numbers("scores")
    if parts.is_gemma:
        # Runs of spaces are stored as spaces, and the order of tokens, not the scores, is that of the merges.
        ids = {
            _SPACE * len(token) if token.isspace() and set(token) == {" "} else token: n
            for token, n in ids.items()
        }
        scores = [-index for index in range(len(ids))]
        if len(ids) != len(parts.tokens):
            raise BadModelFile(f"{parts.path}: the tokenizer has runs of spaces in two spellings")
    merges = _implied_merges(ids, scores)
    unknown = parts.special("unk")
    tokenizer = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if parts.flag("add_space_prefix", not parts.is_gemma):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _implied_merges(ids: dict[str, int], scores: list[int | float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, best token first: the order in which SentencePiece merges."""
    merges: list[tuple[int | float, int, int, str, str]] = []
    for token, index in ids.items():
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in ids]
        ways = sorted((w for w in ways if w[1] in ids), key=lambda w: (ids[w[0]], ids[w[1]]))
        merges += [(-scores[index], -len(left), -len(right), left, right) for left, right in ways]
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _add_whole_tokens(tokenizer: Tokenizer, parts: _Parts) -> None:
    """Tokens that are never cut: those that control, and those that the maker of the model named."""
    typed = list(zip(parts.tokens, parts.types, strict=True))
    named = {token for name in _SPECIAL if (token := parts.special(name)) is not None}
    held = tokenizer.get_vocab()
    control = [token for token, kind in typed if kind == _CONTROL or token in named]
    defined = [token for token, kind in typed if kind == _USER_DEFINED and token not in named]
    for token in chain(control, defined):
        if not token:
            raise BadModelFile(f"{parts.path}: a token that is never cut is empty")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in defined if token in held])


def _add_ends(tokenizer: Tokenizer, parts: _Parts, kind: str) -> None:
    begins = kind == "llama" or parts.text("pre", default="") in _STARTS_BY_DEFAULT
    ends = {"bos": parts.flag("add_bos_token", begins), "eos": parts.flag("add_eos_token", False)}
    tokens = {name: parts.special(name) for name, wanted in ends.items() if wanted}
    if missing := [name for name, token in tokens.items() if token is None]:
        raise BadModelFile(f"{parts.path}: the tokenizer adds a {missing[0]} token but names none")
    pieces = [
        [f"{tokens['bos']}:0"] if "bos" in tokens else [],
        ["$A:0"],
        [f"{tokens['eos']}:0"] if "eos" in tokens else [],
    ]
    single = list(chain(*pieces))
    pair = single + [piece.replace("$A", "$B").replace(":0", ":1") for piece in single]
    named = [(token, parts.ids[token]) for token in tokens.values() if token is not None]
    if named:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=named
        )
