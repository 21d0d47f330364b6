"""What has to happen before a verb loads MODEL."""

import os


def hide_loading_bars() -> None:
    """One spinner is enough. Call it before anything imports tqdm, which looks at the environment once."""
    os.environ.setdefault("TQDM_DISABLE", "1")
