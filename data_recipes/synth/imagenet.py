"""The 1000 ImageNet classes without their pictures: names, and feature maps made from the classifier itself (ours).

With μ and Σ the mean and covariance of the pooled features of real pictures (Σ shrunk: 0.3 of its mean variance is added to
the diagonal), and W_c the classifier's row of class c,

    m_c = μ + k Σ (W_c - W̄),   k = 8

is a feature vector at the data's own scale that the classifier reads as c: moving along Σ(W_c - W̄) raises the logit of c most
for a given Mahalanobis distance. A connector can so be taught 1000 names without 1000 classes of pictures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from data_recipes.synth.clips import Item
from data_recipes.synth.features import FeatureBank, classifier, feature_bank
from data_recipes.synth.pictures import Name
from vlm.errors import ConfigError, MissingDependencyError

STEP, SHRINK = 8.0, 0.3
_NOISE_RANK = 64
VAGUE = 0.3
"""Largest probability of a class where the classifier sees nothing in particular: of the frames of three films here 19 in 20 have less than
0.26, 0.16 and 0.32, and of clear photographs 19 in 20 have more than 0.44."""
ARRANGEMENTS = ("full", "middle", "left", "right", "two", "three")
_PLURAL_NAMES = re.compile(
    r"(tights|sunglasses|trunks|chime|bars|blinds|shades|binoculars|maraca|tweezers|jeans|pajamas)$"
)
_MASS = {"mashed potato", "ice", "hay", "corn", "guacamole", "chocolate sauce", "dough", "espresso", "red wine"}


@dataclass(frozen=True)
class ImageNetClass:
    """One class.

    Attributes:
        id: 0..999.
        name: Its shortest usual name, with article.
        synonyms: Every name ImageNet gives it.
    """

    id: int
    name: Name
    synonyms: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All classes by id. The name is the text before the first comma; where two classes share it, the next synonym.

    Raises:
        MissingDependencyError: timm, which has the names, is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingDependencyError("timm", "smol", "the names of the ImageNet classes") from error
    info = ImageNetInfo()
    rows = [tuple(part.strip() for part in info.index_to_description(i).split(",")) for i in range(info.num_classes())]
    firsts = [row[0] for row in rows]
    out = []
    for i, synonyms in enumerate(rows):
        shared = firsts.count(synonyms[0]) > 1
        noun = synonyms[1] if shared and len(synonyms) > 1 else _SHARED.get(i, synonyms[0])
        out.append(ImageNetClass(i, _name(noun), synonyms))
    return tuple(out)


_SHARED = {134: "crane", 517: "construction crane", 638: "bathing suit"}


def _name(noun: str) -> Name:
    if noun in _MASS or _PLURAL_NAMES.search(noun):
        return Name(noun, "")
    return Name(noun, "an" if noun[:1].lower() in "aeio" or noun.lower().startswith(("umbrella", "upright")) else "a")


@cache
def class_of_name() -> dict[str, int]:
    """Class id by any of its names, lower case; the first class wins where names are shared."""
    table: dict[str, int] = {}
    for entry in imagenet_classes():
        for synonym in (entry.name.noun, *entry.synonyms):
            table.setdefault(synonym.lower(), entry.id)
    return table


def class_prototypes(pooled: np.ndarray, *, step: float = STEP, shrink: float = SHRINK) -> np.ndarray:
    """Prototypes m_c, float32 ``[1000, 1280]``, from pooled features ``[N, 1280]`` of real pictures (module formula)."""
    weight, _ = classifier()
    mean = pooled.mean(0)
    rows = weight - weight.mean(0)
    covariance = np.cov(pooled, rowvar=False)
    covariance += shrink * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return (mean + step * rows @ covariance).astype(np.float32)


class PrototypeMaps:
    """Feature maps of things that no picture shows, laid out like real renderings.

    A real map of one thing splits into R = B + s u + rest, where B is the mean background, u = r̄ - B the shift of the pooled
    feature r̄, and s (mean 1 over the grid) tells where the thing is. Replacing u by that of a prototype, at the same length in
    relation to the thing's size, gives a map of another thing at the same place: B + s ρ (m_c + ε - B) + λ rest, with noise ε of
    the data's own covariance. Maps of several things are sums over B.

    Args:
        bank: Features of the training pictures.
        noise: Size of ε in standard deviations of the data.
        rest: λ, how much of the real map's own detail is kept.
    """

    def __init__(self, bank: FeatureBank | None = None, *, noise: float = 0.35, rest: float = 0.5) -> None:
        self.bank = bank or feature_bank("train")
        self.noise, self.rest = noise, rest

    @cached_property
    def background(self) -> np.ndarray:
        """B, float32 ``[1280]``."""
        return self.bank.pooled[self.bank.where("empty")].mean(0)

    @cached_property
    def prototypes(self) -> np.ndarray:
        """m_c, float32 ``[1000, 1280]``."""
        return class_prototypes(self.bank.pooled[self.bank.where("middle")])

    @cached_property
    def _noise_basis(self) -> np.ndarray:
        """Principal directions of the pooled features times their standard deviations, ``[rank, 1280]``."""
        middle = self.bank.pooled[self.bank.where("middle")]
        _, scales, directions = np.linalg.svd(middle - middle.mean(0), full_matrices=False)
        return (scales[:_NOISE_RANK, None] / np.sqrt(len(middle) - 1)) * directions[:_NOISE_RANK]

    @cached_property
    def _usual_length(self) -> float:
        """Median length of u for one thing in the middle."""
        return float(np.median(np.linalg.norm(self.bank.pooled[self.bank.where("middle")] - self.background, axis=1)))

    def draw(self, class_id: int, arrangement: str, rng: np.random.Generator) -> np.ndarray:
        """Map of one class, float16 ``[49, 1280]``.

        Args:
            class_id: 0..999.
            arrangement: ``full`` (a photograph that fills the frame), ``middle``, ``left``, ``right``, ``two`` or ``three``.
            rng: Decides the real map that lends the layout, and the noise.
        """
        return self._finish(self._shift(class_id, arrangement, rng))

    def draw_pair(self, left: int, right: int, rng: np.random.Generator) -> np.ndarray:
        """Map of two different classes side by side, float16 ``[49, 1280]``."""
        return self._finish(self._shift(left, "left", rng) + self._shift(right, "right", rng))

    def draw_vague(self, rng: np.random.Generator) -> np.ndarray:
        """Map of nothing in particular, float16 ``[49, 1280]``: the mean of a few real maps, or a blend of classes. The classifier has
        no answer for it (at most `VAGUE` for any class), as for frames of streets and trees."""
        while True:
            if rng.random() < 0.5:
                rows = rng.choice(self.bank.where("middle"), int(rng.integers(2, 5)), replace=False)
                shift = self.bank.features[rows].astype(np.float32).mean(0) - self.background
                drawn = self._finish(shift * float(rng.uniform(0.9, 1.5)))
            else:
                classes = rng.choice(len(self.prototypes), int(rng.integers(3, 7)), replace=False)
                shares = rng.dirichlet(np.ones(len(classes)))
                layout = [self._shift(int(c), "full", rng) * s for c, s in zip(classes, shares, strict=True)]
                drawn = self._finish(sum(layout) * float(rng.uniform(1.0, 1.6)))
            if self._sure(drawn) <= VAGUE:
                return drawn

    def _sure(self, drawn: np.ndarray) -> float:
        """The classifier's probability of its best class."""
        weight, bias = classifier()
        logits = drawn.astype(np.float32).mean(0) @ weight.T + bias
        return float(1 / np.exp(logits - logits.max()).sum())

    def _finish(self, shift: np.ndarray) -> np.ndarray:
        return np.clip(self.background + shift, 0.0, 6.0).astype(np.float16)

    def _shift(self, class_id: int, arrangement: str, rng: np.random.Generator) -> np.ndarray:
        """s ρ (m_c + ε - B) + λ rest, float32 ``[49, 1280]``."""
        if arrangement not in ARRANGEMENTS:
            raise ConfigError(f"arrangement {arrangement!r} is not one of {ARRANGEMENTS}")
        rows = self.bank.where("middle" if arrangement == "full" else arrangement)
        real = self.bank.features[int(rng.choice(rows))].astype(np.float32) - self.background
        u = real.mean(0)
        length = float(np.linalg.norm(u))
        where = real @ u / max(length**2, 1e-6)
        rest = real - where[:, None] * u
        if arrangement == "full":
            where, length = 0.6 + 0.4 * where, self._usual_length
        basis = self._noise_basis
        noise = self.noise * rng.standard_normal(len(basis)).astype(np.float32) @ basis
        target = (self.prototypes[class_id] + noise - self.background) * min(length / self._usual_length, 1.3)
        return where[:, None] * target + self.rest * rest


def class_item(class_id: int, place: str) -> Item:
    """A thing known only by its class."""
    return Item(imagenet_classes()[class_id].name, place, class_id=class_id)
