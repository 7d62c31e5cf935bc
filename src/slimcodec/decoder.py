"""Files to pictures: symbols, the decompressed latent, its enhancement, and pixels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.container import Container, Source, read_source, unpack
from slimcodec.entropy.caption import Caption, decode_caption
from slimcodec.entropy.coder import MAX_SYMBOL_BYTES
from slimcodec.errors import FormatError, ModelMismatchError, needs
from slimcodec.images import check_size
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import BLOCK_RADIUS
from slimcodec.models.guidance import CaptionGuide, at_quality
from slimcodec.models.latent_codec import CodedLatent, LatentCodec
from slimcodec.models.tiles import blended, tiled

if TYPE_CHECKING:
    from slimcodec.models.runtime import Runtime

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
NO_CAPTION = Caption(None, None)
#: gradient steps of caption guidance by default
GUIDANCE_STEPS = 4


@dataclass(frozen=True)
class Decompressed:
    """A file before enhancement: the decompressed latent [1, C, h, w], header and payload, caption and its index."""

    latents: Floats
    container: Container
    caption: str | None
    caption_index: int | None


class Sampling(NamedTuple):
    """How latents become pictures: denoising steps, and strength and gradient steps of caption guidance."""

    steps: int
    guidance: float
    guidance_steps: int


class Decoder:
    """The steps from files to pictures. Those that take several files run one pass for all of them."""

    def __init__(self, bundle: Bundle, runtime: Runtime, coder: LatentCodec, tile: int) -> None:
        """``tile``: side, in latent positions, of the pieces in which a large picture is worked on."""
        self.bundle, self.runtime, self.coder, self.tile = bundle, runtime, coder, tile

    def read(self, data: Source, max_pixels: int | None = None) -> tuple[Container, Caption, CodedLatent]:
        """Header and payload, caption and exact symbols of a file; no network with floating point runs. Raises as ``Codec.decode``."""
        bundle = self.bundle
        container = unpack(read_source(data))
        file_bundle = container.bundle_id.hex()
        if file_bundle != bundle.bundle_id:
            raise ModelMismatchError(
                f"the file was made with bundle {file_bundle}, this codec holds {bundle.config.name} "
                f"({bundle.bundle_id}); load the bundle that made it",
                file_bundle,
            )
        # an unknown index is an error before any work
        caption = decode_caption(container.caption, bundle.vocabulary) if container.caption else NO_CAPTION
        cell = bundle.config.cell
        padded = check_size(container.height, container.width, cell, max_pixels)
        rows, columns = (length // cell for length in padded)
        prior = bundle.config.compressor.prior
        longest = rows * columns * (prior.channels + prior.hyper_channels) * MAX_SYMBOL_BYTES
        if len(container.payload) > longest:
            raise FormatError(
                f"corrupt .slim file: {len(container.payload)} bytes of payload, a picture of "
                f"{container.width}x{container.height} has at most {longest}"
            )
        return container, caption, self.coder.read(container.payload, rows, columns, container.quality)

    def decompress(self, data: Source, max_pixels: int | None = None) -> Decompressed:
        """The decompressed latent of a file: what enhancement starts from."""
        container, caption, coded = self.read(data, max_pixels)
        return Decompressed(self.synthesise(coded, container.quality), container, caption.text, caption.index)

    def synthesise(self, coded: CodedLatent, quality: int) -> Floats:
        """The decompressed latent [1, C, h, w], float32, of symbols that were quantised at a quality."""
        config, level = self.bundle.config.compressor, np.array([quality])
        return tiled(
            lambda x: self.runtime.run("synthesise", x, level)[0],
            coded.values,
            tile=self.tile,
            margin=BLOCK_RADIUS * config.synthesis_blocks,
            cell_out=config.patch,
        )

    def pictures(self, files: Sequence[Decompressed], sampling: Sampling) -> list[Image.Image]:
        """The pictures of decompressed latents of one size, and with denoising steps of one quality."""
        latents = np.concatenate([file.latents for file in files])
        if sampling.steps:
            latents = self.enhance(files, latents, sampling.steps)
        pixels = self.pixels(latents)
        if sampling.guidance:
            each = zip(files, np.split(pixels, len(pixels)), strict=True)
            pixels = np.concatenate([self.guide(file, one, sampling) for file, one in each])
        images = crop(pixels, [(file.container.width, file.container.height) for file in files])
        for image, file in zip(images, files, strict=True):
            if comment := drawn_comment(file, sampling):
                # JPEG and GIF keep this on saving; ``slim decode`` writes it into PNG as well
                image.info["comment"] = comment
        return images

    def enhance(self, files: Sequence[Decompressed], latents: Floats, steps: int) -> Floats:
        """The latents [B, C, h, w] of files after denoising, which torch does whatever the runtime."""
        quality, text_scale = files[0].container.quality, self.bundle.config.text_scale
        with needs("torch", "denoising, steps above 0,"):
            import torch

            from slimcodec.models.enhancer import seeded_noise
            from slimcodec.models.surroundings import undisturbed

            model = self.bundle.latent_model
            embed = undisturbed(model.embed_captions)
            captions = embed([file.caption for file in files])
            no_captions = captions if text_scale == 1.0 else embed([None] * len(files))
            enhancer = model.enhancer
        # the noise is part of the file's meaning: a file gives the same picture each time
        seeds = [zlib.crc32(file.container.payload) for file in files]
        noise = [
            seeded_noise(file.latents.shape, seed).numpy() for file, seed in zip(files, seeds, strict=True)
        ]

        @undisturbed
        def enhanced(x: Floats, noise: Floats) -> Floats:
            start, added = (torch.from_numpy(array).to(self.bundle.parts.device) for array in (x, noise))
            result = enhancer(start, quality, steps, added, captions, no_captions, text_scale)
            return np.asarray(result.cpu())

        return blended(enhanced, latents, np.concatenate(noise), tile=enhancer.tile or self.tile)

    def pixels(self, latents: Floats) -> Bytes:
        """The padded pictures [B, 3, H, W] of latents [B, C, h, w]."""
        config = self.bundle.config
        return tiled(
            lambda x: self.runtime.run("decode", x)[0],
            latents,
            tile=self.bundle.autoencoder_tile or self.tile,
            margin=None if config.ldm else config.autoencoder.decoder_radius,
            cell_out=config.stride,
        )

    def guide(self, file: Decompressed, pixels: Bytes, sampling: Sampling) -> Bytes:
        """A decoded picture [1, 3, H, W] moved towards its caption; as it is without one of the vocabulary."""
        bundle, container = self.bundle, file.container
        if file.caption_index is None or bundle.guide_path is None or bundle.error_scales is None:
            return pixels
        seed = zlib.crc32(container.payload)
        size, tag = pixels.shape[2:], file.caption_index
        guide = CaptionGuide(self.runtime.run, bundle, bundle.guide_path, size, tag, seed)
        lost = at_quality(bundle.error_scales, container.quality)
        change = guide.change(pixels, lost, strength=sampling.guidance, steps=sampling.guidance_steps)
        return guide.apply(pixels, change, self.tile)


def drawn_comment(file: Decompressed, sampling: Sampling) -> str:
    """What a picture says of pixels that the model drew, "" where they are the decoder's alone."""
    parts = [f"denoised in {sampling.steps} steps"] if sampling.steps else []
    if sampling.guidance and file.caption_index is not None:
        parts.append(f"guided by the caption {file.caption!r} at strength {sampling.guidance:g}")
    return f"Pixels drawn by slimcodec: {', '.join(parts)}." if parts else ""


def crop(pixels: Bytes, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """Pictures [B, 3, H, W], each cut to its size (width, height)."""
    return [
        Image.fromarray(np.ascontiguousarray(array[:height, :width]))
        for array, (width, height) in zip(pixels.transpose(0, 2, 3, 1), sizes, strict=True)
    ]
