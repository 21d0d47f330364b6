"""`shoestring generate` on a tiny model in a folder, as a person would use it."""

import io
import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from shoestring.cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A model in the Hugging Face layout, with a context of 64 tokens."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 3
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    byte_tokenizer.save_pretrained(path)
    return str(path)


def test_text_goes_to_stdout_and_what_it_cost_to_stderr(folder, capsys):
    assert run(["generate", folder, "a budget", "--max-new-tokens", "20"]) == 0
    text, cost = capsys.readouterr()
    assert run(["generate", folder, "a budget", "--max-new-tokens", "20", "--json"]) == 0
    document, _ = capsys.readouterr()
    assert text == json.loads(document)["text"] + "\n"
    assert cost.startswith("shoestring: 8 prompt tokens in ")
    assert "20 new tokens at " in cost
    assert "tokens/s, ended by max_new_tokens, cache " in cost


def test_json_is_one_document_and_says_what_ran(folder, capsys):
    arguments = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01"]
    documents = []
    for seed in ("1", "1", "2"):
        assert (
            run(["generate", folder, "hi", "--max-new-tokens", "12", "--json", "--seed", seed, *arguments])
            == 0
        )
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["text"] == documents[1]["text"] != documents[2]["text"]
    assert {k: documents[0][k] for k in ("model", "prompt", "finish", "prompt_tokens", "new_tokens")} == {
        "model": folder, "prompt": "hi", "finish": "max_new_tokens", "prompt_tokens": 2, "new_tokens": 12,
    }  # fmt: skip
    keys_and_values = 2 * 2 * 2 * 13 * 16 * 4  # 13 tokens, 2 layers, 2 heads of 16, float32
    assert keys_and_values <= documents[0]["cache_bytes"] < 1.1 * keys_and_values, "positions come on top"
    assert documents[0]["tokens_per_second"] > 0


def test_keys_and_values_in_few_bits(folder, capsys):
    held = {}
    for bits in ("16", "8", "k8v16"):
        assert run(["generate", folder, "hi", "--max-new-tokens", "12", "--json", "--cache-bits", bits]) == 0
        held[bits] = json.loads(capsys.readouterr().out)["cache_bytes"]
    keys_and_values = 2 * 2 * 2 * 14 * 16 * 2  # room for 14 tokens, 2 layers, 2 heads of 16, float16
    assert held["16"] - held["8"] == keys_and_values * (32 - 20) / 32
    assert held["16"] - held["k8v16"] == keys_and_values / 2 * (32 - 20) / 32
    assert run(["generate", folder, "hi", "--cache-bits", "4"]) == 2
    assert "16 channels, but codes of key_bits=4 come in runs of 32" in capsys.readouterr().err
    assert run(["generate", folder, "hi", "--cache-bits", "3"]) == 2
    assert "key_bits=3 is not a width of cached keys and values" in capsys.readouterr().err
    assert run(["generate", folder, "hi", "--cache-bits", "v8"]) == 2
    assert "--cache-bits v8 must be a width such as 8, or two such as k8v4" in capsys.readouterr().err


def document_of(capsys, *arguments):
    assert run(["generate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_saving_has_a_name_and_they_go_together(folder, capsys):
    prompt = "a budget, " * 4
    plain = document_of(capsys, folder, prompt, "--max-new-tokens", "12")
    assert plain["savings"] == dict.fromkeys(("cache", "cache_bits", "select", "keep", "speculate"))
    assert plain["accepted_length"] == 1
    arguments = ["--select", "h2o", "--keep", "10", "--cache", "tokens", "--speculate", "lookup"]
    lean = document_of(capsys, folder, prompt, "--max-new-tokens", "12", *arguments)
    assert lean["savings"] == {
        "cache": "tokens", "cache_bits": None, "select": "h2o", "keep": 10, "speculate": "lookup",
    }  # fmt: skip
    assert lean["new_tokens"] == 12
    assert 0 < lean["cache_bytes"] < 0.7 * plain["cache_bytes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache", "dense"],
        ["--cache", "paged"],
        ["--speculate", "lookup"],
        ["--select", "window", "--keep", "1", "--cache", "paged", "--speculate", "lookup"],
        ["--select", "mpcache", "--keep", "1"],
    ],
)
def test_lossless_savings_give_the_plain_text(arguments, folder, capsys):
    plain = document_of(capsys, folder, "a budget", "--max-new-tokens", "30")
    lean = document_of(capsys, folder, "a budget", "--max-new-tokens", "30", *arguments)
    assert lean["text"] == plain["text"]


def test_drafts_that_are_right_are_told(folder, capsys, monkeypatch):
    from shoestring.generation.sampling import Sampling
    from shoestring.generation.speculation.draft_length import FixedLength
    from shoestring.generation.speculation.prompt_lookup import PromptLookup

    # Lengths by measured time are not those of the next run.
    monkeypatch.setattr(PromptLookup, "length_rule", lambda self: FixedLength())
    # A model that says one thing only: what is looked up is always right.
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, ids, generator: torch.tensor([97]))
    found = document_of(capsys, folder, "aaaa", "--max-new-tokens", "30", "--speculate", "lookup")
    assert found["accepted_length"] > 1.5
    run(["generate", folder, "aaaa", "--max-new-tokens", "30", "--speculate", "lookup"])
    assert f"tokens/s, {found['accepted_length']:.2f} a pass, ended by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cache", "small"], "cache='small' is not one of dense, tokens, groups, paged, planes, tiers"),
        (["--cache", "planes", "--cache-bits", "8"], "cache='planes' has widths of its own"),
        (["--cache", "groups", "--cache-bits", "k8v4"], "one width for keys and values, not 8 and 4"),
        (["--cache", "tiers"], "compresses what a selection sorts, and there is none"),
        (["--select", "best"], "selection='best' is not one of window, h2o"),
        (["--keep", "0.5"], "keep=0.5 of what? Choose a selection"),
        (["--select", "h2o", "--keep", "0"], "keep=0 must be a share in (0, 1] or a whole number"),
        (["--select", "zipvl", "--keep", "64"], "keep=64: zipvl takes the share of attention"),
        (["--select", "zipvl", "--cache", "paged"], "does not go with ZipVL, which stores as TierFormat"),
        (["--select", "spatten", "--speculate", "lookup"], "SpAtten does not go with PromptLookup"),
        (
            ["--select", "h2o", "--activation-bits", "8"],
            "Evicting looks into attention, which",
        ),
        (["--speculate", "luck"], "speculation='luck' is not 'lookup', 'longspec' or a folder"),
    ],
)
def test_savings_that_mean_nothing_are_one_line_and_exit_code_2(arguments, message, folder, capsys):
    assert run(["generate", folder, "a budget", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    assert message in output.err


def test_a_model_that_transformers_runs_takes_bits_only(byte_tokenizer, capsys, tmp_path):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=257, eos_token_id=None, bos_token_id=None, **sizes)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    for option, value in (("--select", "h2o"), ("--cache", "dense"), ("--speculate", "lookup")):
        assert run(["generate", str(tmp_path), "hi", option, value]) == 2
        assert f"{option} needs a model of a family that this library runs itself" in capsys.readouterr().err
    assert run(["generate", str(tmp_path), "hi", "--cache-bits", "8", "--max-new-tokens", "5"]) == 0


def test_a_prompt_comes_from_stdin(folder, capsys, monkeypatch):
    run(["generate", folder, "from a file", "--max-new-tokens", "5"])
    expected = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("from a file"))
    assert run(["generate", folder, "-", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == expected


def test_the_context_is_a_limit_that_is_said(folder, capsys):
    assert run(["generate", folder, "x" * 60]) == 0
    assert "4 new tokens at" in (cost := capsys.readouterr().err)
    assert "ended by context length" in cost


def test_ctrl_c_keeps_what_was_written(folder, capsys, monkeypatch):
    from shoestring.generation.sampling import Sampling

    steps, choose = [], Sampling.choose

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return choose(*arguments)

    monkeypatch.setattr(Sampling, "choose", interrupted)
    assert run(["generate", folder, "a budget"]) == 130
    output = capsys.readouterr()
    assert output.out.endswith("\n")
    assert "5 new tokens" in output.err
    assert "ended by Ctrl-C" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "Missing argument 'MODEL'"),
        (["generate", "FOLDER", ""], "the prompt is empty"),
        (["generate", "FOLDER", " \n"], "the prompt is empty"),
        (["generate", "no-such-model", "hi"], "no model 'no-such-model'"),
        (["generate", "./no/such/folder", "hi"], "no model './no/such/folder'"),
        (["generate", "FOLDER/config.json", "hi"], "config.json is no GGUF file"),
        (["generate", "FOLDER", "hi", "--max-new-tokens", "-3"], "--max-new-tokens -3 must be 1 or more"),
        (["generate", "FOLDER", "hi", "--max-new-tokens", "0"], "--max-new-tokens 0 must be 1 or more"),
        (["generate", "FOLDER", "hi", "--temperature", "-1"], "temperature=-1.0 must be 0 (greedy)"),
        (["generate", "FOLDER", "hi", "--top-p", "2"], "top_p=2.0 must be above 0"),
        (["generate", "FOLDER", "hi", "--seed", "-1"], "Invalid value for '--seed'"),
        (["generate", "FOLDER", "hi", "--chat"], "has no chat template; use --raw"),
        (
            ["generate", "FOLDER", "x" * 64],
            "64 tokens, the context of this model 64: shorten the prompt to 63",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, folder, capsys):
    assert run([argument.replace("FOLDER", folder) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    assert output.err.startswith("shoestring: ")
    assert message in output.err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json: no valid JSON"),
        ("config.json", b"{}", "model_type is None, no name"),
        ("model.safetensors", b"\xff" * 9, "asks for a header of 18446744073709551615 bytes"),
        ("tokenizer.json", b"{}", "its tokenizer cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_line_and_exit_code_2(file, content, message, folder, capsys, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / file).write_bytes(content)
    assert run(["generate", str(damaged), "hi"]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_a_chat_template_wraps_the_prompt(folder, byte_tokenizer, capsys, tmp_path):
    shutil.copytree(folder, tmp_path / "chat")
    byte_tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    byte_tokenizer.save_pretrained(tmp_path / "chat")
    byte_tokenizer.chat_template = None
    run(["generate", str(tmp_path / "chat"), "[hi]", "--max-new-tokens", "5"])
    expected = capsys.readouterr().out
    assert run(["generate", str(tmp_path / "chat"), "hi", "--max-new-tokens", "5", "--chat"]) == 0
    assert capsys.readouterr().out == expected


def test_a_fitted_folder_generates_with_the_cache_its_recipe_asks_for(
    folder, byte_tokenizer, capsys, tmp_path
):
    from shoestring.compression.apply import apply
    from shoestring.compression.kv_quantize import KVQuantize
    from shoestring.compression.saved_folder import save

    recipe = KVQuantize(bits=4, group_size=16, tail_tokens=8)
    model = apply(LlamaForCausalLM.from_pretrained(folder), recipe)
    save(model, byte_tokenizer, tmp_path / "fitted", recipe=recipe)
    sizes = []
    for path in (folder, str(tmp_path / "fitted")):
        assert run(["generate", path, "x" * 40, "--max-new-tokens", "20", "--json"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["cache_bytes"])
    assert 0 < sizes[1] < 0.7 * sizes[0]
