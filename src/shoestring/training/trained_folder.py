"""Where a small model that was trained here is kept."""

import hashlib
import json
from pathlib import Path

from shoestring.files import cache_folder
from shoestring.training.plan import TrainingPlan


def trained_folder(name: str, plan: TrainingPlan, seed: int) -> Path:
    """The folder of this model, plan and seed, under the user cache."""
    text = json.dumps([name, plan.as_json(), seed], sort_keys=True)
    return cache_folder("trained") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
