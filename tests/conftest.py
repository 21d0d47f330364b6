"""Settings that every test shares."""

import signal

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("shoestring", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.register_profile("few", deadline=None, max_examples=4, derandomize=True)
hypothesis.settings.load_profile("shoestring")
# Tensors are tiny here: a second thread costs more than it brings, above all on a busy machine.
torch.set_num_threads(1)
# Started in the background, a test run ignores Ctrl-C, and so would the processes it sends one to.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Byte-level BPE with one token per byte and an end token: id of a byte is `ids[byte]`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False
    )
