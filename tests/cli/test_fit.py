"""`shoestring fit` on a tiny model in a folder, as a person would use it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import shoestring
from shoestring.cli.main import run
from shoestring.cli.sizes import format_bytes, parse_bytes
from shoestring.compression.fit_report import build_page

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
def _own_cache(tmp_path_factory, monkeypatch):
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
    assert run([*arguments, "--memory", "70KiB", "--out", str(out), "--resume"]) == 0
    assert (out / "proof.json").stat().st_mtime_ns > stamp


def test_a_budget_out_of_reach_exits_1_with_the_smallest_model(arguments, tmp_path, capsys):
    out = tmp_path / "smallest"
    assert run([*arguments, "--memory", "4KiB", "--out", str(out)]) == 1
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    size = (out / "model.safetensors").stat().st_size
    assert complaint.startswith("shoestring: 4.0 KiB cannot be met; the smallest reachable size is ")
    assert complaint.endswith(f"({size} bytes)")


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


def test_context_is_part_of_the_budget(arguments, tmp_path, capsys):
    out = tmp_path / "cache"
    assert run([*arguments, "--memory", "200KiB", "--context", "256", "--out", str(out), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["cache_bytes"] > 0
    assert proof["file_bytes"] + proof["cache_bytes"] <= 200 * 1024


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ("0", "--memory '0' holds nothing"),
        ("-3MiB", "--memory '-3MiB' holds nothing"),
        ("64 potatoes", "--memory '64 potatoes' is not a size; write for example 64MiB"),
        ("MiB", "is not a size"),
        ("1GiB", "hold already; give a smaller budget"),
    ],
)
def test_budgets_that_make_no_sense(arguments, budget, complaint, capsys, tmp_path):
    assert run([*arguments, f"--memory={budget}", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert complaint in error[-1]
    assert not (tmp_path / "x").exists()


def test_texts_that_do_not_do(source, tmp_path, capsys):
    command = ["fit", source, "--memory", "60KiB", "--out", str(tmp_path / "x")]
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("a word\n\nand another")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    for name, complaint in {
        "none": "there is no text file",
        "empty": "is empty",
        "binary": "is not UTF-8 text",
        "short": "has 8 tokens, too few for one window of 1024",
    }.items():
        assert run([*command, "--text", str(tmp_path / name)]) == 2
        assert complaint in capsys.readouterr().err


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


def test_a_full_disk_leaves_the_old_folder(arguments, tmp_path, capsys, monkeypatch):
    out = tmp_path / "small"
    assert run([*arguments, "--memory", "60KiB", "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoestring.compression.saved_folder.save_file", full)
    assert run([*arguments, "--memory", "70KiB", "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["small"]


def test_killed_while_saving_the_folder_is_the_old_or_the_new_one(arguments, tmp_path):
    out = tmp_path / "small"
    program = """
import sys, torch
from shoestring.compression.saved_folder import save
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("ready", flush=True)
for version in range(1000):
    save(model, None, sys.argv[2], proof={"version": version})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(shoestring.__file__).parents[1])}
    for delay in (0.05, 0.11, 0.23):
        child = subprocess.Popen(
            [sys.executable, "-c", program, arguments[1], str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert shoestring.load(out) is not None


def test_sizes():
    assert parse_bytes("64MiB", "--memory") == 64 << 20
    assert parse_bytes("1.5 GB", "--memory") == 1_500_000_000
    assert parse_bytes("100", "--memory") == 100
    assert format_bytes(67_000_000) == "63.9 MiB"
    assert format_bytes(12) == "12 B"
