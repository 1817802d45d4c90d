"""What the cost model knows of GPUs, links and software: figures of public data sheets, and few constants of ours.

The data-sheet figures (dense bf16 FLOP/s, memory, bandwidths of one direction) are those of the makers' sheets for A100-SXM, H100-SXM,
H200-SXM and L40S and of the reference systems built of them: one network port per GPU of 200 (A100, L40S) or 400 Gbit/s (H100, H200).
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm.errors import ConfigError

GiB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU and its links.

    Attributes:
        name: As on the command line.
        flops: Peak of dense bf16, FLOP/s.
        memory: Bytes that the driver shows.
        bandwidth: Of the memory, bytes/s.
        near: To other GPUs of the node, bytes/s in one direction.
        far: To other nodes, bytes/s in one direction.
        attention: Share of the peak that a flash-attention kernel of the second generation reaches forward and backward. For A100 and
            H100 as published for that kernel (about 60 % and 35 %), for H200 as H100, for L40S assumed as A100.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    near: float
    far: float
    attention: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 312e12, 80 * GiB, 2.039e12, 300e9, 25e9, 0.60),
        Gpu("A100-40GB", 312e12, 40 * GiB, 1.555e12, 300e9, 25e9, 0.60),
        Gpu("H100", 989e12, 80 * GiB, 3.35e12, 450e9, 50e9, 0.35),
        Gpu("H200", 989e12, 140 * GiB, 4.8e12, 450e9, 50e9, 0.35),
        Gpu("L40S", 362e12, 45 * GiB, 0.864e12, 32e9, 25e9, 0.60),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name, in any case; ``A100-80GB`` and ``H100-80GB`` are A100 and H100.

    Raises:
        ConfigError: It is not in the table.
    """
    wanted = name.upper().removesuffix("-80GB")
    if wanted not in GPUS:
        raise ConfigError(f"gpu={name!r} is not one of {', '.join(GPUS)}")
    return GPUS[wanted]


@dataclass(frozen=True)
class Constants:
    """What no data sheet says (ours). The same for every GPU, model and length.

    Attributes:
        linear: Share of the peak that large matrix products reach. Assumed.
        link: Share of a link that collectives reach (all-to-all, gathering of weights). Assumed; a collective that crosses nodes runs at
            the speed of one network port, which is what LongVILA's step of 32 K tokens shows: 1.04 s, nearly all of it gathering.
        ring: Share of a link to another node that one pair of processes reaches when keys travel around. Calibrated: LongVILA's four
            ring timings on 32 H100 are proportional to the length, 8 to 9 GB/s of 50. (Keys of all 32 query heads at 0.68 would fit
            them as well; the released code sends those of the 8 key heads.)
        latency: Seconds before a message or a kernel does something; the constant part of LongVILA's kernel timings.
        usable: Share of the memory that is left by the CUDA context, communication buffers and fragmentation. Assumed.
    """

    linear: float = 0.60
    link: float = 0.80
    ring: float = 0.17
    latency: float = 30e-6
    usable: float = 0.95


CONSTANTS = Constants()


@dataclass(frozen=True)
class Software:
    """How a training system does what costs memory or time.

    Attributes:
        chunked_loss: Logits are made a few rows at a time; otherwise logits, log-probabilities and gradient of all rows, fp32.
        whole_embeddings: Every process holds the input embeddings of the whole sequence.
        hides_gradients: Key gradients that travel around a ring do so behind the next block.
    """

    chunked_loss: bool = True
    whole_embeddings: bool = False
    hides_gradients: bool = False


OURS = Software()
LONGVILA = Software(chunked_loss=False, whole_embeddings=True, hides_gradients=True)  # as released, read in its code
