"""Put the trained models of the card of HAMburger into the package's data.

shoestring train hamburger-base
shoestring train hamburger --out A
shoestring train hamburger-baseline --out B
python -m shoestring.training.ship_hamburger A/model B/model
"""

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from shoestring.files import replacing_folder
from shoestring.training.tiny_lm import prose_text


def ship(hamburger: Path, baseline: Path, to: Path) -> None:
    """Copy both models and the prose that neither was trained on, so that the card needs no other data.

    Raises: FileNotFoundError for a folder that is not there.
    """
    prose = prose_text()
    with replacing_folder(to) as place:
        shutil.copytree(hamburger / "hamburger", place / "hamburger")
        shutil.copytree(baseline / "decoder", place / "hamburger-baseline")
        text = prose[len(prose) * 19 // 20 :]
        (place / "hamburger-prose.json").write_text(
            json.dumps({"text": text}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]), Path(str(files("shoestring.models") / "trained")))
