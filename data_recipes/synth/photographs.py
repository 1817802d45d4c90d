"""Real photographs with a clear ImageNet class, for evaluation only: samples of opencv-doc (Debian) and scikit-image.

The class ids were given by a person who looked at each picture (ours); pictures without a clear class were left out. A picture may have
several right ids (an orange and a lemon; a tabby is often called "Egyptian cat").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_recipes.sources import debian_package
from data_recipes.synth.features import tower
from data_recipes.synth.imagenet import imagenet_classes
from vlm.errors import DataError
from vlm.media import load_image

OPENCV = {
    "examples/alphamat/input_images/plant.jpg": (738,),
    "examples/data/aloeR.jpg": (738,),
    "examples/data/apple.jpg": (948,),
    "examples/data/baboon.jpg": (372,),
    "examples/data/chicky_512.png": (154,),
    "examples/data/fruits.jpg": (950, 951),
    "examples/data/messi5.jpg": (805,),
    "examples/data/orange.jpg": (950,),
    "examples/data/squirrel_cls.jpg": (335,),
    "examples/dnn_superres/butterfly.png": (323,),
    "examples/hfs/data/001.jpg": (975,),
    "opencv4/html/Bounding_Rotated_Ellipses_Source_Image.jpg": (417,),
    "opencv4/html/HDRtoneMapping_candleSample.jpg": (470,),
    "opencv4/html/Laplace_Operator_Tutorial_Original_Image.jpg": (345,),
    "opencv4/html/Morphology_1_Tutorial_Original_Image.jpg": (281, 282, 285),
    "opencv4/html/Remap_Tutorial_Original_Image.jpg": (235,),
    "opencv4/html/cat_det.jpg": (281, 282, 285),
    "opencv4/html/chocclusion.jpg": (673,),
    "opencv4/html/detect_test1.jpg": (622,),
    "opencv4/html/fusion_mertens.jpg": (562,),
    "opencv4/html/input.jpg": (945,),
    "opencv4/html/space_shuttle.jpg": (812,),
}
SKIMAGE = {
    "camera.png": (872,),
    "chelsea.png": (281, 282, 285),
    "coffee.png": (504, 967, 968),
    "motorcycle_left.png": (665, 670),
    "rocket.jpg": (657,),
}


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        name: File name.
        pixels: uint8 ``[H, W, 3]``.
        class_ids: Right ImageNet classes.
        teacher: EfficientNet-lite0's own top-1 class.
    """

    name: str
    pixels: np.ndarray
    class_ids: tuple[int, ...]
    teacher: int

    @property
    def teacher_is_right(self) -> bool:
        """Whether EfficientNet's top-1 is one of the right classes."""
        return self.teacher in self.class_ids

    @property
    def true_names(self) -> tuple[str, ...]:
        """Names of all right classes."""
        return tuple(imagenet_classes()[i].name.noun for i in self.class_ids)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The name of EfficientNet's top-1 class, in a tuple."""
        return (imagenet_classes()[self.teacher].name.noun,)


@cache
def photographs() -> tuple[Photograph, ...]:
    """All photographs that can be had here.

    Raises:
        DataError: None can.
    """
    folder = debian_package("opencv-doc") / "usr/share/doc/opencv-doc"
    found = [(folder / name, ids) for name, ids in OPENCV.items()]
    spec = find_spec("skimage")
    if spec is not None and spec.origin is not None:
        found += [(Path(spec.origin).parent / "data" / name, ids) for name, ids in SKIMAGE.items()]
    pictures = [_photograph(path, ids) for path, ids in found if path.is_file()]
    if not pictures:
        raise DataError("no photographs found; install Debian's opencv-doc or the package scikit-image")
    return tuple(pictures)


def _photograph(path: Path, class_ids: tuple[int, ...]) -> Photograph:
    import torch

    from vlm.prepare import normalise

    pixels = load_image(path)
    options = {"image_size": 224, "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
    with torch.inference_mode():
        teacher = int(tower()(normalise(pixels[None], options)).argmax())
    return Photograph(path.name, pixels, class_ids, teacher)
