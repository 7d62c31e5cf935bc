"""A bundle: a folder with a configuration and the weights of every part, identified by a hash of what decoding needs.

Weights are safetensors only. Large matrices are stored as 8-bit integers with a scale per row, the exact prior as the
integers that it is. Parts are built when they are first used, so that a part's libraries are imported only where needed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from slimcodec.config import check_sizes, from_plain, remove_setting
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.errors import ModelMismatchError, SlimError, needs
from slimcodec.files import atomic_write, inside, load_json
from slimcodec.models.config import EMBEDDED, ENCODER_ONLY, NOT_IN_ID, BundleConfig
from slimcodec.models.graphs import copy_graphs, read_graph, read_index
from slimcodec.models.pretrained.references import (
    FoundPart,
    PartReference,
    find_part,
    hub_folder,
    local_folder,
)
from slimcodec.models.runtime import Graph, OnnxRuntime, hash_tensors, read_tensors, to_storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from slimcodec.models.captioner import Tagger
    from slimcodec.models.compressor import Compressor
    from slimcodec.models.enhancer import NativeModel
    from slimcodec.models.parts import Parts
    from slimcodec.models.pretrained.hub import ImageToText, ZeroShotTagger
    from slimcodec.models.pretrained.pipeline import PretrainedModel

FORMAT = 1
#: what config.json says of the bundle's identity
IDENTITY = ("bundle_id", "sha256", "weights_sha256")
#: what is fetched of a bundle at the hub
HUB_FILES = ["*.safetensors", "*.onnx", "*.json", "*.txt", "*.model", "*.jinja"]
#: most bytes of a bundle's config.json
CONFIG_BYTES = 1 << 22


class Bundle:
    """Configuration, vocabulary and tensors of a codec.

    Its modules in torch are built on first use, once, whatever the thread.

    The convolutions of autoencoder, compressor and captioners run in ``dtype``; the prior is exact in any case, the enhancer
    and the text model stay in float32.
    """

    def __init__(
        self,
        config: BundleConfig,
        tensors: Mapping[str, Mapping[str, NDArray[Any] | Tensor]],
        vocabulary: tuple[str, ...],
        text: tuple[Any, dict[str, Any]] | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        described: dict[str, Any] | None = None,
        *,
        folder: Path | None = None,
        base: str | Path | None = None,
    ) -> None:
        """``tensors``: a part's name to its state, in floating point or as stored; ``text``: a tokenizer's JSON and a text
        model's configuration; ``described``: ``config`` as it was read from a file. ``folder``, the bundle's own, and ``base``
        are where pretrained parts are looked for first (see ``find_part``).
        """
        self.config, self.vocabulary, self.text = config, vocabulary, text
        self.described = config.described() if described is None else described
        self.folder, self.base = folder, base
        self.stored = {part: to_storage(state) for part, state in tensors.items()}
        self._placed = device, dtype
        for number, captioner in enumerate(config.captioners):
            if captioner.tags != len(vocabulary):
                raise SlimError(f"captioner {number} knows {captioner.tags} of {len(vocabulary)} tags")

    def __reduce__(self) -> tuple[Any, ...]:
        # networks are built anew
        model = self.__dict__.get("latent_model")
        values = (self.config, self.stored, self.vocabulary, self.text, *self._placed, self.described)
        return _unpickled, (model is not None and model.offloaded is not None, values, self.folder, self.base)

    # ---- modules in torch ----------------------------------------------------------------------------------------

    def place(self, device: str, dtype: torch.dtype) -> None:
        """Says where modules will be, and the type of the convolutional networks, before the first is built."""
        self._placed = device, dtype

    @cached_property
    def parts(self) -> Parts:
        """The modules that are built, with their ``device`` and the ``dtype`` of the convolutional networks."""
        import torch

        from slimcodec.models.parts import Parts

        device, dtype = self._placed
        return Parts(self.stored, device, dtype or torch.float32)

    @cached_property
    def latent_model(self) -> NativeModel | PretrainedModel:
        """The latent diffusion model; none of its networks is loaded yet."""
        config = self.config
        if config.ldm is not None:
            from slimcodec.models.pretrained.pipeline import PretrainedModel

            return PretrainedModel(config.ldm, self.parts, self.pretrained_part, config.enhancer)
        from slimcodec.models.enhancer import NativeModel

        return NativeModel(config, self.parts, self.text)

    @property
    def autoencoder_tile(self) -> int | None:
        """Side in latent positions of what a pretrained autoencoder works on at once; None for ours, which looks a few far."""
        return self.latent_model.autoencoder.tile if self.config.ldm else None

    @property
    def compressor(self) -> Compressor:
        """The latent compressor; convolutions in ``dtype``, gains and transforms of patches in float32."""
        return self.module("compressor")

    @property
    def captioners(self) -> list[Tagger]:
        """The taggers; the first one names captions."""
        return [self.module(f"captioner-{number}") for number in range(len(self.config.captioners))]

    def module(self, part: str) -> Any:
        """The module of a part that runtimes run."""
        if part == "autoencoder":
            return self.latent_model.autoencoder
        from slimcodec.models.networks import own_module

        return own_module(part, self.config, self.parts)

    @property
    def caption_model(self) -> ImageToText | ZeroShotTagger | None:
        """The pretrained model that names captions, None in a bundle without one; imports transformers."""
        config = self.config.caption_model
        if config is None:
            return None

        def build() -> ImageToText | ZeroShotTagger:
            from slimcodec.models.pretrained.hub import load_captioner

            self.latent_model.make_room()
            folder = self.pretrained_part(config.part.name).folder
            return load_captioner(folder, config, self.vocabulary, str(self.parts.device))

        captioner = self.parts.get("caption_model", build)
        # models that write call their own parts, past the hook of the whole
        self.latent_model.make_room(captioner.model)
        return captioner

    # ---- pretrained parts, graphs and tables -------------------------------------------------------------------------

    def references(self) -> tuple[PartReference, ...]:
        """The pretrained parts that the bundle names."""
        ldm, captioner = self.config.ldm, self.config.caption_model
        return (*(ldm.parts if ldm else ()), *([captioner.part] if captioner else []))

    def pretrained_part(self, name: str) -> FoundPart:
        """A pretrained part on this machine; ``ModelMismatchError`` where it is not there as it must be."""
        for reference in self.references():
            if reference.name == name:
                return find_part(reference, self.folder, self.base)
        raise SlimError(f"the bundle {self.config.name} has no pretrained part {name}")

    @cached_property
    def onnx(self) -> OnnxRuntime:
        """The networks in ONNX Runtime."""
        return OnnxRuntime(self.graph, self.stored)

    @cached_property
    def graphs(self) -> dict[str, dict[str, Any]]:
        """What the graphs in the bundle's folder are, by the networks' names."""
        return read_index(self)

    def graph(self, name: str) -> Graph:
        """The graph of a network: that of the bundle's folder, else one that torch makes."""
        if self.folder is not None and name in self.graphs:
            return read_graph(self.folder, self.graphs[name])
        with needs("torch", f"the bundle {self.config.name}, which holds no graph {name},"):
            from slimcodec.models.networks import build_graph

            return build_graph(self.config, self.stored, name)

    @property
    def linear_path(self) -> NDArray[Any] | None:
        """From a latent position, or a patch of them, to its pixels; None in a pretrained bundle to which none was fitted."""
        return self.stored.get("guide" if self.config.ldm else "autoencoder", {}).get("synthesis")

    @property
    def guide_path(self) -> NDArray[Any] | None:
        """From the values that guidance moves to the pixels of a patch; in bundles of before, and in ours, the linear path."""
        return self.stored.get("guide", {}).get("basis", self.linear_path)

    @property
    def error_scales(self) -> NDArray[Any] | None:
        """The deviation of what a file loses [levels, C], from quality 1 to 100, as ``guide_path``; None where it is not known."""
        return self.stored.get("guide" if self.config.ldm else "enhancer", {}).get("error_scale")

    @property
    def can_guide(self) -> bool:
        """Whether captions can guide pictures: there is a tagger, and what moves and what is lost are known."""
        known = self.guide_path is not None and self.error_scales is not None
        return bool(self.config.captioners) and known

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decoding depends on: weights, tables, vocabulary and the parts' configuration."""
        # as written: a setting that a later release adds must not change the id of an older bundle
        facts = json.loads(json.dumps([FORMAT, self.described, self.text, self.vocabulary]))
        for path in NOT_IN_ID:
            remove_setting(facts[1], path.split("."))
        described = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        return hash_tensors(described, self.stored, ENCODER_ONLY)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all weights, those of the encoder included: what loading checks."""
        return hash_tensors(hashlib.sha256(), self.stored, {})

    @property
    def bundle_id(self) -> str:
        """The first 4 bytes of the hash, as 8 hex digits: what a file carries."""
        return self.sha256[:8]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the bundle to a folder (made if missing)."""
        with needs("torch", "saving a bundle"):
            from safetensors.numpy import save
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for part, state in self.stored.items():
            atomic_write(path / f"{part}.safetensors", save(state))
        atomic_write(path / "vocabulary.txt", "".join(f"{tag}\n" for tag in self.vocabulary).encode())
        if self.text is not None:
            content = {"tokenizer": self.text[0], "model": self.text[1]}
            atomic_write(path / "text.json", json.dumps(content).encode())
        copy_graphs(self, path)
        identity = {name: getattr(self, name) for name in IDENTITY}
        described = {"format": FORMAT, **identity, **self.described}
        # last, so that a folder with a configuration is whole
        atomic_write(path / "config.json", (json.dumps(described, indent=2) + "\n").encode())

    def push_to_hub(
        self, repository: str, *, private: bool = False, curve: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Uploads what the bundle holds, with a model card, to a Hugging Face hub id and returns its address.

        ``curve``: rows of measured figures for the card, all with the same keys. Raises ``SlimError`` where the hub refuses.
        """
        from huggingface_hub import HfApi

        from slimcodec.models.publishing import model_card

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            Path(folder, "README.md").write_text(model_card(self, repository, curve), encoding="utf-8")
            try:
                hub = HfApi()
                address = hub.create_repo(repository, private=private, exist_ok=True)
                hub.upload_folder(repo_id=repository, folder_path=folder)
            except Exception as error:  # the hub client's errors have no common base
                raise SlimError(f"{repository}: the hub did not take the bundle ({error})") from error
        return str(address)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        base: str | Path | None = None,
    ) -> Bundle:
        """Loads a bundle: the embedded one (None or "slim-tiny"), a folder, or a Hugging Face hub id.

        ``dtype``: float32 by default. ``base``: a folder in which pretrained parts are looked for first. Raises ``SlimError``
        for a damaged bundle, and ``ModelMismatchError`` where its hash differs.
        """
        if source is None or source == EMBEDDED:
            folder = EMBEDDED_BUNDLE
        else:
            found = local_folder(source, f"bundle; give {EMBEDDED}, a folder")
            folder = found or hub_folder(source, "", HUB_FILES)
        # what is installed with the code may be links, as some installers make them
        place = folder.joinpath if folder == EMBEDDED_BUNDLE else partial(inside, folder)
        try:
            described = load_json(place("config.json"), CONFIG_BYTES)
        except (OSError, ValueError) as error:
            raise SlimError(f"{folder}: not a bundle, its config.json cannot be read ({error})") from error
        if not isinstance(described, dict) or described.pop("format", None) != FORMAT:
            raise SlimError(f"{folder}: this release reads bundles of format {FORMAT} only; update slimcodec")
        try:
            hashes = {name: str(described.pop(name)) for name in IDENTITY}
            weights = [place(path.name) for path in sorted(folder.glob("*.safetensors"))]
            tensors = {path.stem: read_tensors(path) for path in weights}
            vocabulary = read_vocabulary(place("vocabulary.txt"))
            text = None
            if (folder / "text.json").exists():
                content = load_json(place("text.json"))
                check_sizes(content["model"], f"{folder / 'text.json'}: model")
                text = (content["tokenizer"], content["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SlimError(f"{folder}: the bundle is damaged ({error!r}); get it again") from error
        path = f"{folder / 'config.json'}"
        check_sizes({name: value for name, value in described.items() if name != "training"}, path)
        config = from_plain(BundleConfig, described, path)
        bundle = cls(config, tensors, vocabulary, text, device, dtype, described, folder=folder, base=base)
        for name in IDENTITY[1:]:
            if (actual := getattr(bundle, name)) != hashes[name]:
                raise ModelMismatchError(
                    f"{folder}: this is not bundle {hashes['bundle_id']} as it was saved: its {name} is {actual[:16]}, "
                    f"expected {hashes[name][:16]}; get the bundle again",
                    hashes["bundle_id"],
                )
        return bundle


def _unpickled(offloaded: bool, values: Any, folder: Any, base: Any) -> Bundle:
    bundle = Bundle(*values, folder=folder, base=base)
    if offloaded:
        bundle.latent_model.offload()
    return bundle
