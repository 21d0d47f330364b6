import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.errors import BadModelFile
from shoestring.models.checkpoint import is_known_gguf, open_checkpoint
from shoestring.models.gguf_file import GGUFFile
from shoestring.models.load import check_tokenizer, find_model, load_decoder, load_tokenizer
from shoestring.models.safetensors_file import SafetensorsFile
from shoestring.notices import record_fallbacks
from shoestring.yardstick.memory import LiveMemory
from shoestring.yardstick.process_memory import resident_memory

from .families import MAKERS, ids_of, make
from .gguf_bytes import ARRAY, STRING, U32, tiny_decoder


@pytest.fixture(params=list(MAKERS))
def family(request, tmp_path):
    model = make(request.param)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_folder_of_each_family_gives_the_logits_of_transformers(family):
    model, folder = family
    decoder = load_decoder(folder)
    ids = ids_of(2, 30)
    torch.testing.assert_close(decoder(ids).logits, model(ids).logits, rtol=1e-4, atol=2e-4)
    assert decoder.config.model_type == model.config.model_type
    assert type(decoder.config) is type(model.config)
    assert decoder.generation_config.eos_token_id == 2
    assert not decoder.training


def test_shards(tmp_path):
    model = make("llama, tied")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    ids = ids_of(1, 9)
    torch.testing.assert_close(load_decoder(tmp_path)(ids).logits, model(ids).logits)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.disk_bytes == sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))


def test_types(tmp_path):
    make("qwen 2", dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_decoder(tmp_path).parameters()} == {torch.bfloat16}
    wide = load_decoder(tmp_path, torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert wide.config.dtype is torch.float32


@pytest.fixture
def folder(tmp_path):
    make("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj.weight"
CONFIGS = {
    "another architecture": ({"model_type": "mamba"}, "'mamba' is not one"),
    "no architecture": ({"model_type": "absent"}, "model_type is None"),
    "an architecture that is a number": ({"model_type": 3}, "model_type is 3"),
    "no sizes": ({"hidden_size": "absent"}, "hidden_size is missing"),
    "a giant count of layers": ({"num_hidden_layers": 10**12}, "but there are"),
    "a giant vocabulary": ({"vocab_size": 10**15}, "more than any tensor"),
    "another width": ({"intermediate_size": 60}, "but the config asks for"),
    "one layer less": ({"num_hidden_layers": 3}, "without a place in the model"),
    "one layer more": ({"num_hidden_layers": 5}, "lacks 'model.layers.4"),
    "a text as size": ({"hidden_size": "48"}, "hidden_size is '48'"),
    "no base": ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_do_not_fit(name, folder):
    changes, reason = CONFIGS[name]
    change_config(folder, **changes)
    with pytest.raises(BadModelFile) as caught:
        load_decoder(folder)
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


TENSORS = {
    "one missing": (lambda t: t.pop(Q), f"lacks '{Q}'"),
    "many missing": (lambda t: [t.pop(n) for n in list(t) if "q_proj" in n], "and 1 more"),
    "one too many": (lambda t: t.update(strange=torch.ones(1)), "'strange'"),
    "another shape": (
        lambda t: t.update({Q: t[Q][:-1].contiguous()}),
        f"{Q} is (63, 48), but the config asks for (64, 48)",
    ),
    "whole numbers": (lambda t: t.update({Q: t[Q].to(torch.int64)}), "no plain weights"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit(name, folder):
    change, reason = TENSORS[name]
    change_tensors(folder, change)
    with pytest.raises(BadModelFile) as caught:
        load_decoder(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frequencies_that_old_versions_stored_are_passed_over(folder):
    change_tensors(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    load_decoder(folder)


def test_missing_files(folder, tmp_path):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        open_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_checkpoint(tmp_path / "nothing.gguf")
    for name in ("nothing", "./no/such", "/no/such", "a/b/c", "no/such.gguf"):
        with pytest.raises(FileNotFoundError, match="no model"):
            find_model(name)


def test_a_gguf_file_and_its_tokenizer(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(tiny_decoder("qwen3", tied=False).write().data))
    decoder, tokenizer = load_decoder(path), load_tokenizer(path)
    ids = torch.tensor([tokenizer("hello hello")["input_ids"]])
    assert decoder(ids).logits.shape == (1, ids.shape[1], decoder.cfg.vocab_size)
    assert decoder.generation_config.eos_token_id == 1
    check_tokenizer(tokenizer, decoder.cfg.vocab_size, path)


def test_a_tokenizer_of_another_model(byte_tokenizer, tmp_path):
    with pytest.raises(BadModelFile, match="tokenizer mismatch: it has 56 tokens beyond the 200 rows"):
        check_tokenizer(byte_tokenizer, 200, tmp_path)
    with record_fallbacks() as said:
        check_tokenizer(byte_tokenizer, 256, tmp_path)
    assert "no embedding for '<end>'" in said[0]


def test_a_file_that_names_no_architecture_is_not_ours(tmp_path):
    path = tmp_path / "model.gguf"
    for value in ((STRING, ["llama", "llama"]), (U32, [1, 2])):
        content = tiny_decoder("llama").with_pair("general.architecture", ARRAY, value)
        path.write_bytes(bytes(content.write().data))
        assert not is_known_gguf(GGUFFile(path))


def test_a_damaged_tokenizer(folder, byte_tokenizer):
    byte_tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(BadModelFile, match="its tokenizer cannot be read") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llama, tied", "gemma 3"])
def test_no_weight_is_in_memory_twice(name, tmp_path):
    """Live tensors never exceed the weights by more than the largest of them, also where types change."""
    make(name).save_pretrained(tmp_path)
    with LiveMemory() as memory:
        decoder = load_decoder(tmp_path, torch.float64)
    sizes = {p.data_ptr(): p.nbytes for p in decoder.parameters()}.values()
    # The empty decoder on the meta device, in float32, is counted although it takes no memory.
    assert memory.peak_bytes <= sum(sizes) + max(sizes) + sum(sizes) // 2 + 4096


@pytest.mark.parametrize(
    "form",
    [
        "gguf",
        pytest.param("safetensors", marks=pytest.mark.slow),
        pytest.param("safetensors in another type", marks=pytest.mark.slow),
    ],
)
def test_the_process_never_holds_the_weights_twice(form, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # so that the measuring process finds the module
    loading = importlib.import_module("loading")
    # Freed tensors go back to the system at once: the second load would else be counted with what malloc
    # kept of the first, which differs from run to run.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    path = loading.write(form, tmp_path)
    measured = resident_memory(loading.loads, path=str(path), form=form)
    assert measured.step_bytes <= loading.WEIGHT_BYTES + loading.LARGEST_BYTES + (24 << 20)
    # The yardstick does see memory of this size: the weights are there at least once.
    assert measured.step_bytes >= loading.WEIGHT_BYTES * 0.8


def test_closed_files_leave_nothing_behind(folder, tmp_path):
    """The mapping lives as long as its tensors, and a file may be replaced under them."""
    tensor = SafetensorsFile(folder / "model.safetensors")["model.norm.weight"]
    before = tensor.clone()
    shutil.copy(folder / "config.json", tmp_path / "other")
    (tmp_path / "other").replace(folder / "model.safetensors")
    assert torch.equal(tensor, before)


def test_no_tokens_at_all(tmp_path):
    path = tmp_path / "model.gguf"
    content = tiny_decoder("llama").with_pair("tokenizer.ggml.tokens", ARRAY, (STRING, []))
    path.write_bytes(bytes(content.write().data))
    with pytest.raises(BadModelFile):
        load_tokenizer(path)
    assert len(GGUFFile(path)) == 20
