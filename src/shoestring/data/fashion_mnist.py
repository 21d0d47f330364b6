"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28, in ten classes.

It is looked for on this machine first and fetched only when it is nowhere: see `load_fashion_mnist`.

Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms".
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from shoestring.data.idx import parse_idx, read_bytes
from shoestring.data.labelled_images import LabelledImages, TrainTest
from shoestring.errors import MissingData
from shoestring.files import cache_folder, replacing_folder

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of the decompressed files: who compressed them, and how, does not matter.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
_SYSTEM_FOLDERS = Path("/usr/share/datasets")
_CONNECT_SECONDS = 5
_APT_SECONDS = 120


def load_fashion_mnist() -> TrainTest:
    """60,000 training and 10,000 test pictures.

    Looked for in `$SHOESTRING_DATA/fashion-mnist`, the user cache, and where Debian's package
    `dataset-fashion-mnist` puts it; else fetched into the cache from the authors' host, else from Debian.
    Every file is checked against its SHA-256.

    Raises: MissingData saying how to provide it; ValueError naming a file that is truncated or altered.
    """
    for folder in candidate_folders():
        if is_complete(folder):
            return read_folder(folder)
    target = cache_folder("data") / "fashion-mnist"
    reasons = []
    for fetch in (_download, _unpack_debian_package):
        try:
            with replacing_folder(target) as temporary:
                fetch(temporary)
                read_folder(temporary)
            return read_folder(target)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(str(error))
    raise MissingData(
        f"Fashion-MNIST is not on this machine and could not be fetched ({'; '.join(reasons)}): "
        f"install the Debian package {DEBIAN_PACKAGE}, or put its four files "
        f"({', '.join(f'{name}.gz' for name in CHECKSUMS)}) into a folder 'fashion-mnist' and set "
        f"SHOESTRING_DATA to the folder above it"
    )


def candidate_folders() -> Iterator[Path]:
    """Where the data set may lie on this machine, in the order in which it is looked for."""
    if base := os.environ.get("SHOESTRING_DATA"):
        yield Path(base, "fashion-mnist")
    yield cache_folder("data") / "fashion-mnist"
    yield from sorted(_SYSTEM_FOLDERS.glob("fashion-mnist*"))


def is_complete(folder: Path) -> bool:
    """Whether all four files are there, compressed or not."""
    return all(_find(folder, name) is not None for name in CHECKSUMS)


def read_folder(folder: Path) -> TrainTest:
    """The data set from the four files in `folder`.

    Raises: FileNotFoundError; ValueError naming a file that is truncated or altered.
    """
    arrays = {name: _read_checked(folder, name) for name in CHECKSUMS}
    return TrainTest(
        LabelledImages(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]),
        LabelledImages(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_checked(folder: Path, name: str) -> UInt8[np.ndarray, "..."]:
    path = _find(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder} lacks {name}.gz")
    content = read_bytes(os.fspath(path))
    array = parse_idx(content, os.fspath(path))
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[name]:
        raise ValueError(f"{path}: its SHA-256 is not that of Fashion-MNIST; provide it anew")
    return array


def _download(folder: Path) -> None:
    """Fetch the four files from the authors' host. Raises: OSError where there is no network."""
    for name in CHECKSUMS:
        address = f"{HOST}/{name}.gz"
        try:
            with urllib.request.urlopen(address, timeout=_CONNECT_SECONDS) as answer:
                (folder / f"{name}.gz").write_bytes(answer.read())
        except OSError as error:
            raise OSError(f"no answer from {HOST}: {error}") from error


def _unpack_debian_package(folder: Path) -> None:
    """Fetch Debian's package and take the files out of it, without being root.

    Raises: FileNotFoundError without apt; OSError when apt has no such package.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"there is no {tool} here")
    with tempfile.TemporaryDirectory() as work:
        got = subprocess.run(
            ["apt-get", "download", DEBIAN_PACKAGE],
            cwd=work,
            timeout=_APT_SECONDS,
            capture_output=True,
            text=True,
        )
        packages = list(Path(work).glob("*.deb"))
        if got.returncode or not packages:
            message = " ".join(got.stderr.split()) or "no package came"
            raise OSError(f"apt-get download {DEBIAN_PACKAGE}: {message}")
        subprocess.run(["dpkg-deb", "-x", packages[0].name, "unpacked"], cwd=work, check=True)
        for name in CHECKSUMS:
            found = next(Path(work, "unpacked").rglob(f"{name}.gz"), None)
            if found is None:
                raise OSError(f"{packages[0].name} lacks {name}.gz")
            shutil.copyfile(found, folder / f"{name}.gz")
