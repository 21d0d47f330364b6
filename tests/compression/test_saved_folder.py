"""A saved folder gives identical outputs, appears whole or not at all, and is checked before it is used."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compression.models import batches, bert, gpt2, llama
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import shoestring
from shoestring.compression import (
    ActivationAwareLowRank,
    KVQuantize,
    KVQuantizeTokens,
    LowRank,
    RoundToNearest,
    apply,
    capture,
)
from shoestring.compression.saved_folder import load, read_recipe, save
from shoestring.errors import BadModelFile
from shoestring.layers import LowRankLinear, PackedEmbedding
from shoestring.numbers import CacheFormat, TokenCacheFormat, ZeroPoint


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    )


def mixed(model: nn.Module) -> nn.Module:
    """Several recipes at once: an 8-bit table, 3 and 5 bits, low rank with a quantised factor."""
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    recipes = {n: RoundToNearest(5, 16, ZeroPoint.INTEGER, 8) for n in names}
    recipes |= {
        names[2]: RoundToNearest(3, 8, ZeroPoint.REAL, 6),
        names[3]: LowRank(4),
        names[4]: LowRank(0.5),
    }
    embeddings = [n for n, m in model.named_modules() if type(m) is nn.Embedding]
    head = {"lm_head": RoundToNearest(8, 16)} if hasattr(model, "lm_head") else {}
    tied = hasattr(model, "lm_head") and model.config.tie_word_embeddings
    tables = {n: RoundToNearest(8, 16) for n in embeddings[1 if tied else 0 :]}
    apply(model, recipes | tables | head)
    return apply(model, {f"{names[3]}.down": RoundToNearest(4, 16)})


@pytest.mark.parametrize("make", [llama, lambda: llama(tied=False), gpt2, bert])
def test_outputs_are_identical_after_loading_by_both_ways(make, tmp_path):
    model = mixed(make())
    ids = batches()[0]
    save(model, tokenizer(), tmp_path / "m")
    loaded = load(tmp_path / "m")
    auto = AutoModel if make is bert else AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path / "m")
    assert type(loaded) is type(theirs) is type(model)
    assert not loaded.training
    with torch.no_grad():
        expected = model(ids)[0]
        assert torch.equal(loaded(ids)[0], expected)
        assert torch.equal(theirs(ids)[0], expected)
    assert {n: type(m) for n, m in loaded.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def test_the_folder_has_the_layout_of_the_hub(tmp_path):
    recipe = {"*": RoundToNearest(4, 16), "lm_head": None}
    model = apply(llama(tied=False), recipe)
    proof = {"loss_before": 2.0, "loss_after": 2.1}
    save(model, tokenizer(), tmp_path / "m", recipe=recipe, proof=proof)
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "recipe.json", "proof.json",
    }  # fmt: skip
    assert not any(n.endswith((".bin", ".pt", ".pkl", ".tmp")) for n in names)
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "shoestring"
    entry = config["quantization_config"]["modules"]["model.layers.0.mlp.up_proj"]
    assert entry == {
        "kind": "PackedLinear", "rows": 64, "cols": 32, "bits": 4, "group_size": 16,
        "zero_point": "symmetric", "scale_bits": 16, "bias": False,
    }  # fmt: skip
    assert json.loads((tmp_path / "m/proof.json").read_text()) == proof
    assert read_recipe(tmp_path / "m") == recipe
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("b")["input_ids"] == [1]


def test_a_tied_table_is_stored_once_and_stays_tied(tmp_path):
    save(mixed(llama()), None, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    assert "model.embed_tokens.packed.codes" in tensors
    assert not any(name.startswith("lm_head") for name in tensors)
    loaded = load(tmp_path / "m")
    assert isinstance(loaded.model.embed_tokens, PackedEmbedding)
    assert loaded.lm_head.packed is loaded.model.embed_tokens.packed


def test_a_loaded_model_can_be_saved_again_also_by_transformers(tmp_path):
    model = mixed(llama())
    ids = batches()[0]
    save(model, None, tmp_path / "a")
    save(load(tmp_path / "a"), None, tmp_path / "b")
    AutoModelForCausalLM.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "b")(ids)[0], model(ids)[0])
        assert torch.equal(again(ids)[0], model(ids)[0])


def test_bfloat16_and_the_format_of_the_cache_survive(tmp_path):
    save(llama(), None, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    apply(model, RoundToNearest(4, 16), ignore=())
    apply(model, KVQuantize(4, 8, 16))
    save(model, None, tmp_path / "m")
    loaded = load(tmp_path / "m")
    ids = batches()[0]
    assert loaded.kv_cache_format == CacheFormat(4, 8, 16)
    assert loaded(ids)[0].dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_a_cache_of_tokens_by_themselves_survives(tmp_path):
    model = apply(llama(), KVQuantizeTokens(16, 16))
    save(model, None, tmp_path / "m")
    assert load(tmp_path / "m").kv_cache_format == TokenCacheFormat(16, 16)


def test_activation_aware_low_rank_is_saved_like_plain(tmp_path):
    model = llama()
    apply(model, {"*.down_proj": ActivationAwareLowRank(0.4)}, calibration=capture(model, batches()))
    save(model, None, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert isinstance(loaded.model.layers[0].mlp.down_proj, LowRankLinear)
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0])[0], model(batches()[0])[0])


def test_a_new_process_needs_no_more_than_importing_shoestring(tmp_path):
    model = apply(llama(), RoundToNearest(4, 16))
    save(model, None, tmp_path / "m")
    code = (
        "import sys, shoestring; assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM; import torch\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'm')!r})\n"
        "print(m(torch.arange(9)[None])[0].double().sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    with torch.no_grad():
        assert float(done.stdout) == model(torch.arange(9)[None])[0].double().sum().item()


def test_a_folder_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.txt").write_text("meow")
    with pytest.raises(FileExistsError, match="photos holds files that shoestring did not save"):
        save(llama(), None, tmp_path / "photos")
    with pytest.raises(FileExistsError, match="cat.txt is a file"):
        save(llama(), None, tmp_path / "photos/cat.txt")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.txt"]
    (tmp_path / "empty").mkdir()
    save(llama(), None, tmp_path / "empty")
    save(apply(llama(), RoundToNearest(4, 16)), None, tmp_path / "empty")  # our own may be replaced


def test_a_plain_module_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Sequential has no transformers config"):
        save(nn.Sequential(nn.Linear(2, 2)), None, tmp_path / "m")


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[-7] ^= 1
        weights.write_bytes(data)
    elif how == "cut short":
        os.truncate(weights, weights.stat().st_size - 100)
    elif how == "missing file":
        weights.unlink()
    elif how == "edited config":
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    elif how == "no recipe":
        (folder / "recipe.json").unlink()
    elif how == "garbled recipe":
        (folder / "recipe.json").write_text('{"made_by": ')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped bit", r"model.safetensors was changed after it was saved \(its SHA-256 differs\)"),
        ("cut short", r"model.safetensors has \d+ bytes instead of \d+; copy the folder again"),
        ("missing file", "model.safetensors is missing; copy the folder again"),
        ("edited config", "config.json has"),
        ("no recipe", "was not saved by shoestring: it has no valid recipe.json"),
        ("garbled recipe", "was not saved by shoestring"),
    ],
)
def test_a_damaged_folder_is_named(how, message, tmp_path):
    save(apply(llama(), RoundToNearest(4, 16)), None, tmp_path / "m")
    damage(tmp_path / "m", how)
    with pytest.raises(BadModelFile, match=message):
        load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def rewrite(folder: Path, change) -> None:
    """Change the tensors and record their new checksum, as a careless tool would."""
    import hashlib

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    data = (folder / "model.safetensors").read_bytes()
    document = json.loads((folder / "recipe.json").read_text())
    document["files"]["model.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "recipe.json").write_text(json.dumps(document))


def test_tensors_of_another_shape_or_absent_ones_are_named(tmp_path):
    name = "model.layers.0.mlp.up_proj.packed.codes"
    for step, (change, message) in enumerate(
        [
            (
                lambda t: t.update({name: t[name][:, 1:].contiguous()}),
                rf"'{name}' is \(\(64, 15\), 'U8'\) instead",
            ),
            (lambda t: t.update({name: t[name].float()}), "'F32'"),
            (lambda t: t.pop(name), rf"'{name}' is None instead of \(\(64, 16\), 'U8'\)"),
            (lambda t: t.pop("model.norm.weight"), "do not fit the model.*model.norm.weight"),
            (lambda t: t.update(extra=torch.ones(1)), "do not fit the model.*extra"),
        ]
    ):
        folder = tmp_path / str(step)
        save(apply(llama(), RoundToNearest(4, 16)), None, folder)
        rewrite(folder, change)
        with pytest.raises(BadModelFile, match=message):
            load(folder)


def environment() -> dict[str, str]:
    root = Path(shoestring.__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


SAVER = """
import resource, signal, sys
from shoestring.compression import RoundToNearest, apply
from shoestring.compression.saved_folder import save
from tests.compression.models import llama
models = [apply(llama(), RoundToNearest(bits, 16), ignore=()) for bits in (4, 5)]
"""


def test_a_full_disk_leaves_the_old_folder_and_no_rubbish(tmp_path):
    """The limit on the length of a file makes the write of the weights fail as a full disk would."""
    save(apply(llama(), RoundToNearest(3, 16)), None, tmp_path / "m")
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    code = SAVER + (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        f"save(models[0], None, {str(tmp_path / 'm')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
    load(tmp_path / "m")


def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path):
    folder = tmp_path / "m"
    code = SAVER + (
        f"save(models[0], None, {str(folder)!r})\nprint('go', flush=True)\n"
        f"while True:\n    for m in models:\n        save(m, None, {str(folder)!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(0.137)
    process.send_signal(signal.SIGKILL)
    process.wait()
    model = load(folder)
    assert model.lm_head.packed.form.bits in (4, 5)
    save(model, None, folder)
    assert load(folder).lm_head.packed.form.bits == model.lm_head.packed.form.bits


def test_the_library_exports_the_three_verbs():
    assert shoestring.apply is apply
    assert (shoestring.save, shoestring.load) == (save, load)
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        _ = shoestring.aply
