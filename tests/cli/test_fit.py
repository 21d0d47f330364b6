"""`shoestring fit` on a tiny model in a folder, as a person would use it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from gguf import GGUFReader
from tests.compression.llama_cpp_process import ask_llama_cpp
from tests.compression.models import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import shoestring
from shoestring.cli.fit_output import say_not_met
from shoestring.cli.main import run
from shoestring.cli.sizes import format_bytes, parse_bytes
from shoestring.compression import RoundToNearest, apply
from shoestring.compression.fit_report import build_page
from shoestring.compression.saved_folder import save
from shoestring.compression.weight_matrix import matrix_shape
from shoestring.layers.packed_linear import PackedLinear

TEXT = "\n\n".join(f"Paragraph {i}: a budget of {i * i} bytes, spent {i % 7} times over." for i in range(400))


@pytest.fixture(scope="module")
def source(tmp_path_factory, byte_tokenizer):
    """A model of 257 bytes' vocabulary that sees 1024 tokens; about 0.4 MB in float32."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, eos_token_id=None, bos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 3
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    byte_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache_and_short_samples(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("shoestring.compression.before_after.NEW_TOKENS", 12)
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path_factory.getbasetemp() / "fit-cache"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="module")
def arguments(source, text):
    return ["fit", source, "--text", text, "--tuning-steps", "2"]


def test_fit_saves_a_model_within_the_budget_with_its_proof(arguments, tmp_path, capsys):
    out = tmp_path / "small"
    assert run([*arguments, "--memory", "60KiB", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    proof = json.loads((out / "proof.json").read_text())
    assert printed == proof
    size = (out / "model.safetensors").stat().st_size
    assert size == proof["file_bytes"] <= 60 * 1024
    assert proof["met"]
    shipped, half, fitted = proof["states"]
    assert fitted["disk_bytes"] == size < half["disk_bytes"] < shipped["disk_bytes"]
    assert fitted["peak_bytes"] < shipped["peak_bytes"]
    assert shipped["quality"]["kld"] == 0 < fitted["quality"]["kld"]
    assert sum(layer["bytes"] for layer in proof["layers"]) < size
    page = (out / "report.html").read_text()
    assert page == build_page(proof)
    assert "http" not in page.replace("http://www.w3.org", "")
    ids = torch.arange(40)[None]
    loaded = shoestring.load(out)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(ids).logits, loaded(ids).logits)

    # A new process meets our format before transformers' table of formats.
    environment = {**os.environ, "PYTHONPATH": str(Path(shoestring.__file__).parents[1])}
    for program in (
        f"import shoestring; print(shoestring.load({str(out)!r}).training)",
        "import shoestring; from transformers import AutoModelForCausalLM as auto; "
        f"print(auto.from_pretrained({str(out)!r}).training)",
    ):
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, text=True, env=environment).strip() == "False"

    # The same job again does nothing; another budget does.
    stamp = (out / "proof.json").stat().st_mtime_ns
    assert run([*arguments, "--memory", "60KiB", "--out", str(out), "--resume"]) == 0
    assert "holds this fit already" in capsys.readouterr().err
    assert (out / "proof.json").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert run([*arguments, "--memory", "70KiB", "--out", str(out), "--resume"]) == 0
    assert (out / "proof.json").stat().st_mtime_ns > stamp
    states = json.loads((out / "proof.json").read_text())["states"]
    faster = states[-1]["tokens_per_second"] / states[0]["tokens_per_second"]
    assert f"fitted, it decodes at {faster:.1f} times the speed" in capsys.readouterr().out


def test_a_budget_out_of_reach_exits_1_with_the_smallest_model(arguments, tmp_path, capsys):
    out = tmp_path / "smallest"
    assert run([*arguments, "--memory", "4KiB", "--out", str(out)]) == 1
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    size = (out / "model.safetensors").stat().st_size
    assert complaint.startswith("shoestring: 4.0 KiB cannot be met; the smallest reachable size is ")
    assert complaint.endswith(f"({size} bytes)")
    assert run([*arguments, "--memory", str(size), "--out", str(out)]) == 0, "what was called reachable is"
    assert (out / "model.safetensors").stat().st_size == size


def test_more_recipes_may_be_chosen_from(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--memory", "60KiB", "--recipes", "sparse,dual-binary", "--dry-run"]) == 1
    assert "cannot be met; the smallest reachable size" in capsys.readouterr().err, "the embedding stays"
    assert run([*arguments, "--memory", "190KiB", "--recipes", "sparse,dual-binary", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "SparseGPT, sparsity 0.5" in shown
    assert run([*arguments, "--memory", "60KiB", "--recipes", "all", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["target"] == "shoestring with default, sparse, dual-binary, low-rank"
    assert {layer["recipe"]["recipe"] for layer in plan["layers"]} >= {"GPTQ"}


def test_dry_run_plans_and_saves_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--memory", "60KiB", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "of 60.0 KiB; predicted divergence" in text
    assert "GPTQ" in text
    assert os.listdir(tmp_path) == []
    assert run([*arguments, "--memory", "60KiB", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["file_bytes"] <= plan["budget_bytes"] == 60 * 1024


def test_the_cache_is_part_of_the_budget_and_is_what_generation_uses(source, tmp_path, capsys):
    out, short = tmp_path / "cache", tmp_path / "short.txt"
    short.write_text(TEXT[:7000])  # three windows in each half: chunk by chunk through a cache takes time
    budget, context = 200 * 1024, 1024
    command = ["fit", source, "--text", str(short), "--tuning-steps", "0", "--out", str(out)]
    assert run([*command, "--memory", "200KiB", "--context", str(context)]) == 0
    shown = capsys.readouterr().out
    proof = json.loads((out / "proof.json").read_text())
    cheapest, full = proof["caches"][-1], proof["caches"][0]
    assert full["cache"] is None
    assert full["bytes"] > budget, "in full the cache alone would take more than there is"
    assert proof["file_bytes"] + proof["cache_bytes"] <= budget
    assert cheapest["predicted_loss"] > proof["caches"][1]["predicted_loss"] > 0, "2 bits lose more than 8"
    fitted = proof["states"][-1]["quality"]["kld"]
    assert proof["cache_kld"] > 0.9 * fitted, "what the weights lost is lost with the cache too"
    page = (out / "report.html").read_text()
    if "key_bits" in proof["cache"]:
        kind = f"keys in {proof['cache']['key_bits']} bits, values in {proof['cache']['value_bits']}"
        assert f"1024 tokens, {kind}; KLD with it" in shown
        assert f"{kind} (chosen)" in page
    else:
        bits = proof["cache"]["bits"]
        assert f"1024 tokens in {bits} bits, the last 32 or more in full; KLD with it" in shown
        assert f"{bits} bits, groups of 32 (chosen)" in page
    assert "The cache" in page

    sizes = {}
    for model in (source, str(out)):
        assert run(["generate", model, "x" * 1000, "--max-new-tokens", "24", "--json"]) == 0
        sizes[model] = json.loads(capsys.readouterr().out)["cache_bytes"]
    assert sizes[str(out)] <= proof["cache_bytes"]
    assert sizes[source] > 2 * proof["cache_bytes"]


def test_a_fit_for_llama_cpp_gives_a_file_that_it_reads(source, arguments, tmp_path, capsys):
    out, gguf, model = tmp_path / "small", tmp_path / "small.gguf", tmp_path / "bpe"
    config = LlamaConfig.from_pretrained(source, vocab_size=260)
    torch.manual_seed(4)
    made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        parameter.data *= 3
    made.save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    command = ["fit", str(model), *arguments[2:], "--memory", "72KiB", "--out", str(out), "--gguf", str(gguf)]
    assert run(command) == 0
    shown = capsys.readouterr().out
    proof = json.loads((out / "proof.json").read_text())
    assert proof["target"] == "llama.cpp"
    assert proof["exported_bytes"] < proof["file_bytes"] <= 72 * 1024
    assert f"wrote {gguf}" in shown.replace("\n", "")
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(gguf).tensors}
    assert kinds <= {"F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert len(kinds) > 2, "mixed as the budget allows"

    # Lost, it is made again from the folder; what another target was fitted for is not taken for this job.
    data = gguf.read_bytes()
    gguf.unlink()
    assert run([*command, "--resume"]) == 0
    assert gguf.read_bytes() == data
    assert "holds this fit already" in capsys.readouterr().err

    ids = torch.randint(0, 256, (48,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = shoestring.load(out)(ids[None]).logits[0]
    theirs = torch.tensor(ask_llama_cpp(gguf, {"ids": ids.tolist()}))
    # llama.cpp rounds activations to 8 bits before a product with packed weights, and its cache to float16.
    assert (ours - theirs).norm() < 0.05 * ours.norm()
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


class BitClock:
    """A clock of no machine: every byte of packed codes takes 10 ns, a step 1 ms more."""

    context = 128

    def __init__(self, original, context=None):
        self.context = context or self.context

    def layer_seconds(self, slot, recipe, cache):
        return matrix_shape(slot.module)[0] * matrix_shape(slot.module)[1] * recipe.bits / 8 * 1e-8

    def rest_seconds(self, cache):
        return 1e-3

    def step_seconds(self, model):
        packed = [m.packed for m in model.modules() if isinstance(m, PackedLinear)]
        dense = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        nbytes = sum(p.rows * p.cols * p.form.bits / 8 for p in packed) + sum(m.weight.nbytes for m in dense)
        return 1e-3 + nbytes * 1e-8


@pytest.fixture
def bit_clock(monkeypatch):
    monkeypatch.setattr("shoestring.compression.decode_clock.StopWatch", BitClock)


def test_a_speed_is_a_budget_too(arguments, bit_clock, tmp_path, capsys):
    out = tmp_path / "fast"
    command = [*arguments, "--out", str(out)]
    assert run([*command, "--tokens-per-second", "600"]) == 0
    shown = capsys.readouterr().out
    proof = json.loads((out / "proof.json").read_text())
    assert proof["budget_bytes"] is None
    assert proof["tokens_per_second"] == 600
    assert proof["met"]
    speed = proof["speed"]
    assert speed["measured"] >= 600
    assert f"{speed['measured']:.1f} tokens/s measured at 128 tokens of context; 600 asked for" in shown
    assert "in 600 tokens/s" not in shown, "a model is not in a speed"
    page = (out / "report.html").read_text()
    assert f"{speed['predicted']:.1f} predicted" in page
    assert f"<b>{speed['measured']:.1f}</b>" in page
    stamp = (out / "proof.json").stat().st_mtime_ns
    assert run([*command, "--tokens-per-second", "600", "--resume"]) == 0
    assert (out / "proof.json").stat().st_mtime_ns == stamp
    capsys.readouterr()

    # Faster costs quality and bytes; both budgets at once.
    assert run([*command, "--tokens-per-second", "650", "--memory", "70KiB", "--json", "--resume"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["speed"]["measured"] >= 650
    assert both["file_bytes"] <= 70 * 1024
    assert both["states"][-1]["quality"]["kld"] > proof["states"][-1]["quality"]["kld"]


def test_a_plan_that_was_not_kept_is_no_proof_of_what_is_reachable(capsys):
    document = {
        "file_bytes": 1024, "cache_bytes": None, "budget_bytes": None,
        "speed": {"wanted": 230, "predicted": 237.0, "measured": 227.6},
    }  # fmt: skip
    with pytest.raises(typer.Exit) as stopped:
        say_not_met(document)
    assert stopped.value.exit_code == 1
    expected = "230 tokens/s were not reached; the fastest measured are 227.6, in 1.0 KiB (1024 bytes)"
    assert expected in capsys.readouterr().err


def test_a_speed_out_of_reach_exits_1_with_the_fastest(arguments, bit_clock, tmp_path, capsys):
    out = tmp_path / "fastest"
    assert run([*arguments, "--tokens-per-second", "900", "--out", str(out)]) == 1
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    proof = json.loads((out / "proof.json").read_text())
    assert not proof["met"]
    assert not proof["speed"]["met"]
    assert complaint == (
        "shoestring: 900 tokens/s cannot be met; the fastest reachable is "
        f"{proof['speed']['measured']:.1f} tokens/s (measured), in {format_bytes(proof['file_bytes'])} "
        f"({proof['file_bytes']} bytes), at a divergence of {proof['states'][-1]['quality']['kld']:.4f} "
        "nats a token"
    )
    page = (out / "report.html").read_text()
    assert "The speed cannot be met." in page
    assert "the fastest model that was reached" in page
    assert run([*arguments, "--tokens-per-second", "900", "--dry-run"]) == 1
    output = capsys.readouterr()
    assert "900 asked for; a fit measures it" in output.out.replace("\n", " ")
    assert "tokens/s (predicted), in" in output.err
    assert run([*arguments, "--tokens-per-second", "100", "--out", str(tmp_path / "x")]) == 2
    assert "tokens/s as it is, and is small enough; ask for more than 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "no budget; give --memory 64MiB, --tokens-per-second 40, or both"),
        (["--tokens-per-second", "0"], "--tokens-per-second 0 is no speed; give a number above 0, for"),
        (["--tokens-per-second=-1"], "--tokens-per-second -1 is no speed"),
        (["--tokens-per-second", "nan"], "--tokens-per-second nan is no speed"),
        (["--tokens-per-second", "inf", "--memory", "60KiB"], "--tokens-per-second inf is no speed"),
        (["--tokens-per-second", "fast"], "Invalid value for '--tokens-per-second'"),
        (["--tokens-per-second", "9", "--gguf", "m.gguf"], "not llama.cpp's; leave it out with --gguf"),
        (["--tokens-per-second", "9", "--context", "4096"], "a context of 4096 tokens is outside 1 to 2048"),
    ],
)
def test_speeds_that_make_no_sense(arguments, options, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shoestring.compression.profile.measure_sensitivity", None)
    assert run([*arguments, *options]) == 2
    refused(capsys, complaint)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ("0", "--memory '0' holds nothing"),
        ("-3MiB", "--memory '-3MiB' holds nothing"),
        ("64 potatoes", "--memory '64 potatoes' is not a size; write for example 64MiB"),
        ("MiB", "is not a size"),
        ("1GiB", "holds already; give a smaller budget"),
    ],
)
def test_budgets_that_make_no_sense(arguments, budget, complaint, capsys, tmp_path):
    for dry in ([], ["--dry-run"]):
        assert run([*arguments, f"--memory={budget}", "--out", str(tmp_path / "x"), *dry]) == 2
        refused(capsys, complaint)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--context", "0"], "--context 0 holds nothing; give the number of tokens, for example 4096"),
        (["--context", "-5"], "--context -5 holds nothing"),
        (["--context", "4096"], "a context of 4096 tokens is outside 1 to 2048, the longest that"),
        (["--context", "many"], "Invalid value for '--context'"),
        (["--tuning-steps", "-1"], "Invalid value for '--tuning-steps'"),
        (
            ["--recipes", "best"],
            "'best' is no family of recipes; use default, sparse, dual-binary, low-rank, all",
        ),
        (
            ["--recipes", "all", "--gguf", "m.gguf"],
            "llama.cpp has formats of its own; leave it out with --gguf",
        ),
        (["--gguf", "."], "--gguf . is a folder; name a file in it, e.g. model.gguf"),
        (["--gguf", "no\0name"], "null"),
        (["--gguf", "book.txt/m.gguf"], "m.gguf cannot be written (Not a directory); choose another place"),
        (["--gguf", "m.gguf", "--context", "9"], "which llama.cpp has not; leave it out with --gguf"),
        (["--out", "."], ". is the current folder, which cannot be replaced as a whole; name a folder in it"),
        (["--out", "n" * 250], "cannot be written (File name too long); choose another place"),
        (["--out", "mounted"], "mounted is a mount point, which cannot be replaced as a whole; name a"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    source, text, options, complaint, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shoestring.compression.profile.measure_sensitivity", None)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "mounted")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path.parent / "no-profile-yet"))
    (tmp_path.parent / "book.txt").write_text(TEXT)
    if "book.txt/m.gguf" in options:
        options = ["--gguf", str(tmp_path.parent / "book.txt/m.gguf")]
    assert run(["fit", source, "--text", text, "--memory", "60KiB", *options]) == 2
    refused(capsys, complaint)
    assert os.listdir(tmp_path) == []


def refused(capsys, complaint: str) -> None:
    """One line on stderr, and nothing on stdout."""
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    assert output.err.startswith("shoestring: ")
    assert complaint in output.err


def test_a_model_that_sees_little_is_fitted_on_short_windows(source, text, tmp_path, capsys):
    """GPT-2's learned positions end: a window beyond them would fail."""
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    shutil.copy(Path(source, "tokenizer.json"), tmp_path / "gpt2")
    shutil.copy(Path(source, "tokenizer_config.json"), tmp_path / "gpt2")
    command = ["fit", str(tmp_path / "gpt2"), "--text", text, "--memory", "50KiB", "--tuning-steps", "0"]
    assert run([*command, "--out", str(tmp_path / "small"), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["states"][0]["quality"]["model"]["protocol"]["window"] == 64
    assert proof["states"][0]["tokens_per_second"] > 0
    assert run([*command, "--out", str(tmp_path / "x"), "--gguf", str(tmp_path / "x.gguf")]) == 2
    refused(capsys, "GGUF export knows models of type 'llama', not 'gpt2'")


def test_texts_that_do_not_do(source, tmp_path, capsys):
    command = ["fit", source, "--memory", "60KiB", "--out", str(tmp_path / "x")]
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("a word\n\nand another")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "zeros").write_bytes(bytes(4000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "three").write_text(TEXT[:3000])
    for name, complaint in {
        "none": "there is no text file",
        "folder": "cannot be read: Is a directory",
        "zeros": "holds NUL characters, so it is no text",
        "three": "gives 2 windows of 512 tokens, 5 are needed; give more text",
        "empty": "is empty",
        "binary": "is not UTF-8 text",
        "short": "has 8 tokens, too few for one window of 512",
    }.items():
        assert run([*command, "--text", str(tmp_path / name)]) == 2
        refused(capsys, complaint)
    assert not (tmp_path / "x").exists()


def test_models_and_folders_that_do_not_do(arguments, tmp_path, capsys):
    assert run(["fit", str(tmp_path / "nothing"), "--memory", "1MiB"]) == 2
    assert "no model" in capsys.readouterr().err
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    assert run([*arguments, "--memory", "60KiB", "--out", str(foreign)]) == 2
    assert "holds files that shoestring did not save" in capsys.readouterr().err
    assert os.listdir(foreign) == ["letter.txt"]
    file = tmp_path / "file"
    file.write_text("x")
    assert run([*arguments, "--memory", "60KiB", "--out", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err
    assert run([*arguments, "--memory", "60KiB", "--out", str(file / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_fitted_folder_is_not_fitted_again(source, arguments, tmp_path, capsys):
    model = apply(AutoModelForCausalLM.from_pretrained(source), RoundToNearest(8, 32))
    save(model, AutoTokenizer.from_pretrained(source), tmp_path / "small")
    assert run(["fit", str(tmp_path / "small"), *arguments[2:], "--memory", "50KiB", "--dry-run"]) == 2
    refused(capsys, "the model was fitted already; fit the one that it was made from")


HOSTILE = """
import os, random, resource, signal, sys, time
from glob import glob
import shoestring.cli.fit, shoestring.compression.proven_fit, shoestring.compression.fit_report
from shoestring.cli.main import main

shoestring.compression.before_after.NEW_TOKENS = 12
out, arguments = sys.argv[1], sys.argv[2:]
draw = random.Random(0)

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except SystemExit as end:
            os._exit(end.code)
        os._exit(99)
    return pid

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def full_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    main(arguments)

def when(found, pid, name):
    while not found():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before the signal came"
        time.sleep(0.001)
    os.kill(pid, name)
    return code(pid)

saving = lambda: glob(os.path.join(os.path.dirname(out), f".{os.path.basename(out)}.*.tmp/*"))
print("full", code(child(full_disk)), flush=True)
began = time.monotonic()
soon = lambda: time.monotonic() - began > 0.3
print("interrupted", when(soon, child(lambda: main(arguments)), signal.SIGINT))
print("saving", when(saving, child(lambda: main(arguments)), signal.SIGINT))
"""


def in_a_fresh_process(program: str, *arguments: str) -> subprocess.CompletedProcess:
    root = Path(shoestring.__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_full_disks_and_ctrl_c_leave_the_old_folder_as_it_was(arguments, tmp_path):
    """The limit on the length of a file makes writes fail as on a full disk. All real, in processes."""
    out = tmp_path / "small"
    command = [*arguments, "--tuning-steps", "0"]
    assert run([*command, "--memory", "60KiB", "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = in_a_fresh_process(HOSTILE, str(out), *command, "--memory", "70KiB", "--out", str(out), "--json")
    assert done.stdout.split("\n") == ["full 2", "interrupted 130", "saving 130", ""], done.stderr
    assert done.stderr.count("shoestring: interrupted\n") == 2
    complaint = next(line for line in done.stderr.splitlines() if "was not saved" in line)
    assert complaint.startswith(f"shoestring: {out} was not saved (")
    assert "File too large" in complaint
    assert complaint.endswith("; what was there before is unchanged.")
    assert "Traceback" not in done.stderr
    assert "it/s]" not in done.stderr, "no bars of other libraries"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["small"]


KILLED = """
import os, random, signal, sys, time
import shoestring
from shoestring.compression.saved_folder import read_proof, save
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
out, draw, newest = sys.argv[2], random.Random(0), 0
save(model, None, out, proof={"version": 0})
for _ in range(25):
    pid = os.fork()
    if pid == 0:
        while True:
            newest += 1
            save(model, None, out, proof={"version": newest})
    time.sleep(draw.uniform(0, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    version = read_proof(out)["version"]  # every file's checksum is right
    assert version >= newest, (version, newest)
    newest = version
    beside = sorted(os.listdir(os.path.dirname(out)))
    assert beside[-1] == os.path.basename(out) and len(beside) <= 2, beside
save(shoestring.load(out), None, out)
print(newest, os.listdir(os.path.dirname(out)))
"""


def test_killed_while_saving_the_folder_is_the_old_or_the_new_one(source, tmp_path):
    done = in_a_fresh_process(KILLED, source, str(tmp_path / "small"))
    assert done.returncode == 0, done.stderr
    saved, left = done.stdout.split(" ", 1)
    assert int(saved) >= 3, "the kills came while there was something to save"
    assert left == "['small']\n"


def test_sizes():
    assert parse_bytes("64MiB", "--memory") == 64 << 20
    assert parse_bytes("1.5 GB", "--memory") == 1_500_000_000
    assert parse_bytes("100", "--memory") == 100
    assert format_bytes(67_000_000) == "63.9 MiB"
    assert format_bytes(12) == "12 B"
