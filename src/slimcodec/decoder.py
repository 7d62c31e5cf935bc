"""Files to pictures: symbols, the decompressed latent, its enhancement, and pixels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from slimcodec.container import Container, Source, read_source, unpack
from slimcodec.entropy.caption import Caption, decode_caption
from slimcodec.entropy.coder import MAX_SYMBOL_BYTES
from slimcodec.errors import FormatError, ModelMismatchError
from slimcodec.images import check_size
from slimcodec.models.bundle import Bundle
from slimcodec.models.latent_codec import CodedLatent
from slimcodec.models.latent_model import blended, tiled
from slimcodec.models.surroundings import undisturbed

NO_CAPTION = Caption(None, None)
#: gradient steps of caption guidance by default
GUIDANCE_STEPS = 4


@dataclass(frozen=True)
class CodedFile:
    """A file whose symbols are read: header and payload, the caption, and the symbols."""

    container: Container
    caption: Caption
    coded: CodedLatent


@dataclass(frozen=True)
class Decompressed:
    """A file before enhancement: the decompressed latent [1, C, h, w], header and payload, caption and its index."""

    latents: Tensor
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

    def __init__(self, bundle: Bundle, tile: int) -> None:
        """``tile``: side, in latent positions, of the pieces in which a large picture is worked on."""
        self.bundle, self.tile = bundle, tile

    @undisturbed
    def read(self, data: Source, max_pixels: int | None = None) -> CodedFile:
        """The exact symbols of a file; no network with floating point runs. Raises as ``Codec.decode`` does."""
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
        padded = check_size(container.height, container.width, bundle.cell, max_pixels)
        rows, columns = (length // bundle.cell for length in padded)
        prior = bundle.config.compressor.prior
        longest = rows * columns * (prior.channels + prior.hyper_channels) * MAX_SYMBOL_BYTES
        if len(container.payload) > longest:
            raise FormatError(
                f"corrupt .slim file: {len(container.payload)} bytes of payload, a picture of "
                f"{container.width}x{container.height} has at most {longest}"
            )
        coded = bundle.coder.read(container.payload, rows, columns, container.quality)
        return CodedFile(container, caption, coded)

    @undisturbed
    def decompress(self, data: Source, max_pixels: int | None = None) -> Decompressed:
        """The decompressed latent of a file: what enhancement starts from."""
        file = self.read(data, max_pixels)
        latents = self.synthesise(file.coded, file.container.quality)
        return Decompressed(latents, file.container, file.caption.text, file.caption.index)

    @undisturbed
    def synthesise(self, coded: CodedLatent, quality: int) -> Tensor:
        """The decompressed latent [1, C, h, w], float32, of symbols that were quantised at a quality."""
        compressor = self.bundle.compressor
        level = compressor.level(torch.tensor([quality], device=self.bundle.device))
        return tiled(
            lambda x: compressor.synthesise(x, level),
            coded.values,
            tile=self.tile,
            margin=compressor.synthesis_radius,
            cell_out=compressor.config.patch,
        )

    @undisturbed
    def pictures(self, files: Sequence[Decompressed], sampling: Sampling) -> list[Image.Image]:
        """The pictures of decompressed latents of one size, and with denoising steps of one quality."""
        latents = torch.cat([file.latents for file in files])
        if sampling.steps:
            latents = self.enhance(files, latents, sampling.steps)
        pixels = self.pixels(latents)
        if sampling.guidance:
            pixels = torch.cat(
                [self.guide(*one, sampling) for one in zip(files, pixels.split(1), strict=True)]
            )
        images = crop(pixels, [(file.container.width, file.container.height) for file in files])
        for image, file in zip(images, files, strict=True):
            if comment := drawn_comment(file, sampling):
                # JPEG and GIF keep this on saving; ``slim decode`` writes it into PNG as well
                image.info["comment"] = comment
        return images

    @undisturbed
    def enhance(self, files: Sequence[Decompressed], latents: Tensor, steps: int) -> Tensor:
        """The latents [B, C, h, w] of files after denoising."""
        from slimcodec.models.enhancer import seeded_noise

        model = self.bundle.latent_model
        quality, text_scale = files[0].container.quality, self.bundle.config.text_scale
        captions = model.embed_captions([file.caption for file in files])
        no_captions = captions if text_scale == 1.0 else model.embed_captions([None] * len(files))
        # the noise is part of the file's meaning: a file gives the same picture each time
        seeds = [zlib.crc32(file.container.payload) for file in files]
        noise = [seeded_noise(file.latents.shape, seed) for file, seed in zip(files, seeds, strict=True)]
        enhancer = model.enhancer
        return blended(
            lambda x, noise: enhancer(x, quality, steps, noise, captions, no_captions, text_scale),
            latents,
            torch.cat(noise).to(self.bundle.device),
            tile=enhancer.tile or self.tile,
        )

    @undisturbed
    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> Tensor:
        """The padded pictures [B, 3, H, W] uint8 of latents [B, C, h, w]."""
        space = self.bundle.latent_model.autoencoder

        def pixels(x: Tensor) -> Tensor:
            return space.decode(x).add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

        return tiled(pixels, latents, tile=self.tile, margin=space.decoder_radius, cell_out=space.stride)

    @undisturbed
    @torch.inference_mode()
    def guide(self, file: Decompressed, pixels: Tensor, sampling: Sampling) -> Tensor:
        """A decoded picture [1, 3, H, W] uint8 moved towards its caption; as it is without one of the vocabulary."""
        if file.caption_index is None:
            return pixels
        guide, container = self.bundle.guide, file.container
        change = guide.change(
            pixels,
            file.caption_index,
            self.bundle.latent_model.error_scale(container.quality),
            strength=sampling.guidance,
            steps=sampling.guidance_steps,
            seed=zlib.crc32(container.payload),
        )
        return guide.apply(pixels, change, self.tile)


def drawn_comment(file: Decompressed, sampling: Sampling) -> str:
    """What a picture says of pixels that the model drew, "" where they are the decoder's alone."""
    parts = [f"denoised in {sampling.steps} steps"] if sampling.steps else []
    if sampling.guidance and file.caption_index is not None:
        parts.append(f"guided by the caption {file.caption!r} at strength {sampling.guidance:g}")
    return f"Pixels drawn by slimcodec: {', '.join(parts)}." if parts else ""


def crop(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """Pictures [B, 3, H, W] uint8, each cut to its size (width, height)."""
    arrays = pixels.permute(0, 2, 3, 1).cpu()
    return [
        Image.fromarray(array[:height, :width].contiguous().numpy())
        for array, (width, height) in zip(arrays, sizes, strict=True)
    ]
