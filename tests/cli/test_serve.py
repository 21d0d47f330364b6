"""`shoestring serve`: what is wrong is said before anything is loaded."""

import pytest

from shoestring.cli.main import run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "lots"], "--memory 'lots' is not a size"),
        (["--cache-bits", "v8"], "--cache-bits v8 must be a width such as 8, or two such as k8v4"),
        (
            ["--cache-bits", "k8v3"],
            "value_bits=3 is not a width of cached keys and values",
        ),
        (["--activation-bits", "16"], "--activation-bits 16 must be 8 or 32"),
        (["--max-sequences", "0"], "Invalid value for '--max-sequences': "),
        (["--token-budget", "0"], "Invalid value for '--token-budget': "),
        (["--max-waiting", "-1"], "Invalid value for '--max-waiting': "),
    ],
)
def test_bad_options_are_one_line(options, message, capsys):
    assert run(["serve", "no-such-model", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert run(["serve", "no/such/folder/model.gguf"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
