import pytest
from transformers import AutoTokenizer

from shoestring.errors import BadModelFile
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.gguf_tokenizer import gguf_tokenizer

from .gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U32, tiny_decoder

TEXTS = [
    "hello  hello", " hello", "he said: hell1234 o'clock", "<think>x</think><|user|> hello </s>",
    "\n\n\thello é 漢 🙂\r\n  ", "    12", "",
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def made(path, content):
    path.write_bytes(bytes(content.write().data))
    return gguf_tokenizer(GGUFFile(path))


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3"])
def test_cuts_text_as_transformers_does(architecture, path):
    ours = made(path, tiny_decoder(architecture))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids), text
    # Theirs has further tokens, which are in no file.
    assert ours.get_vocab().items() <= theirs.get_vocab().items()
    for name in ("bos_token", "eos_token"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_digits_stand_apart(path):
    """Transformers takes no notice of this rule, by which the built-in model was trained."""
    tokenizer = made(path, tiny_decoder("llama"))
    assert tokenizer.tokenize("   12 a") == ["Ġ" + "Ġ", "Ġ", "1", "2", "Ġ", "a"]
    assert tokenizer.decode(tokenizer("   12 a")["input_ids"]) == "   12 a"


def test_saved_and_read_again(path, tmp_path):
    ours = made(
        path, tiny_decoder("gemma3").with_pair("tokenizer.chat_template", STRING, "{{ messages[0] }}")
    )
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert again(text)["input_ids"] == ours(text)["input_ids"]
    assert again.chat_template == "{{ messages[0] }}"


def test_begin_and_end(path):
    content = tiny_decoder("llama")
    assert made(path, content)("hello")["input_ids"][0] != 0
    both = content.with_pair("tokenizer.ggml.add_bos_token", BOOL, True)
    both = both.with_pair("tokenizer.ggml.add_eos_token", BOOL, True)
    assert [made(path, both)("hello")["input_ids"][i] for i in (0, -1)] == [0, 1]


LLAMA = tiny_decoder("llama")
COUNT = len(next(value for key, _, value in LLAMA.pairs if key == "tokenizer.ggml.tokens")[1])
HOSTILE = {
    "no tokens": (LLAMA.without("tokenizer.ggml.tokens"), "no list of texts"),
    "tokens that are numbers": (
        LLAMA.with_pair("tokenizer.ggml.tokens", ARRAY, (U32, [1])),
        "no list of texts",
    ),
    "a token twice": (
        LLAMA.with_pair("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a"])),
        "1 tokens twice",
    ),
    "another kind": (LLAMA.with_pair("tokenizer.ggml.model", STRING, "t5"), "known are gpt2 and llama"),
    "another rule": (LLAMA.with_pair("tokenizer.ggml.pre", STRING, "jina"), "'jina'; known are"),
    "rules": (LLAMA.with_pair("tokenizer.ggml.pre", ARRAY, (U32, [1, 2])), "instead of a text"),
    "no merges": (LLAMA.without("tokenizer.ggml.merges"), "merges is no list of texts"),
    "a merge to nothing": (
        LLAMA.with_pair("tokenizer.ggml.merges", ARRAY, (STRING, ["h z"])),
        "'h z' is not of two",
    ),
    "a merge of one": (LLAMA.with_pair("tokenizer.ggml.merges", ARRAY, (STRING, ["h"])), "'h' is not of two"),
    "types too few": (LLAMA.with_pair("tokenizer.ggml.token_type", ARRAY, (I32, [1])), "no list of"),
    "an end outside": (LLAMA.with_pair("tokenizer.ggml.eos_token_id", U32, COUNT), f"no token of {COUNT}"),
    "an end that is negative": (LLAMA.with_pair("tokenizer.ggml.eos_token_id", I32, -1), "no token of"),
    "a flag that is a number": (LLAMA.with_pair("tokenizer.ggml.add_bos_token", U32, 1), "true or false"),
    "a template that is a number": (
        LLAMA.with_pair("tokenizer.chat_template", F32, 1.0),
        "instead of a text",
    ),
    "a begin that is not named": (
        LLAMA.without("tokenizer.ggml.bos_token_id").with_pair("tokenizer.ggml.add_bos_token", BOOL, True),
        "adds a bos token but names none",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals(name, path):
    content, reason = HOSTILE[name]
    with pytest.raises(BadModelFile) as caught:
        made(path, content)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_built_in_tokenizer_on_the_default_text(path):
    """Equal to the one of transformers once that is given the rule for digits."""
    from tokenizers import pre_tokenizers

    from shoestring.data.text import default_halves
    from shoestring.models.built_in import built_in_file

    source = built_in_file("smollm2-135m")
    ours = gguf_tokenizer(GGUFFile(source))
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    halves = default_halves()
    for text in (halves.calibration, halves.held_out):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.chat_template == theirs.chat_template
