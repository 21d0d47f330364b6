"""Settings that every test shares."""

import hypothesis
import torch

hypothesis.settings.register_profile("shoestring", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("shoestring")
torch.set_num_threads(2)
