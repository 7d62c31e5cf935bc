"""The networks of classifiers: ONNX files, TorchScript files and models of transformers, called alike."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.pretrained.hub import load_model

#: normalised pictures [B, 3, S, S] to (scores [B, K], feature map, ..., last feature map)
Network = Callable[[Tensor], tuple[Tensor, ...]]
#: maps of a smaller stride hold edges rather than features
SMALLEST_STRIDE = 4
ACCEPTED = "give an ONNX or TorchScript file, a transformers image-classification folder, or a hub id of one"


class OnnxNetwork:
    """The first output of an ONNX file as a network; it has no feature maps and no gradients."""

    def __init__(self, path: Path) -> None:
        self._session = onnx_session(path)
        entry = self._session.get_inputs()[0]
        shape = entry.shape
        if len(shape) != 4 or entry.type != "tensor(float)" or (shape[3] == 3 and shape[1] != 3):
            raise SlimError(
                f"{path}: its input is {entry.type} {shape}; a classifier takes float32 pictures [B, 3, H, W]"
            )
        self._input, self.side = entry.name, shape[3] if isinstance(shape[3], int) else None

    def __call__(self, x: Tensor) -> tuple[Tensor]:
        return (torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0]),)


class ScriptNetwork:
    """A TorchScript file that gives logits, or logits and feature maps."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        try:
            self.script = torch.jit.load(str(path), map_location=device).eval()
        except (ValueError, RuntimeError) as error:
            raise SlimError(
                f"{path}: not a TorchScript file that this PyTorch can read ({error}); {ACCEPTED}"
            ) from error
        # its graph is asked for before the first run, which rewrites it, and outside autocast, which puts casts in
        with torch.autocast(torch.device(device).type, enabled=False):
            _ = self.script.inlined_graph
        # a script has no requires_grad_() of its own
        for parameter in self.script.parameters():
            parameter.requires_grad_(False)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        # the optimising executor fuses whole subgraphs, after which gradients at inner feature maps are lost
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs = self.script(x)
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class TransformersNetwork:
    """An image classifier of transformers, with feature maps where the ``side`` of a teacher's pictures is given.

    Convolutional networks (ResNet, ConvNeXt, MobileNet) give their last map at each stride from 4 up. Vision transformers of
    one grid (ViT, DeiT, DINOv2) give one map: the patches' tokens before the last block, since after it only the class
    token matters to the logits, and a gradient there says nothing of places. Raises ``SlimError`` for other networks.
    """

    def __init__(self, folder: Path, device: str = "cpu", side: int = 0) -> None:
        from transformers import AutoModelForImageClassification

        self.model: Any = load_model(AutoModelForImageClassification, folder, device)
        # a vision transformer refuses other sizes than that of its training unless told to interpolate
        known = inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        self.with_features, self.last_block = bool(side), None
        if side:
            self._find_features(folder, torch.zeros(1, 3, side, side, device=device))

    @torch.no_grad()
    def _find_features(self, folder: Path, x: Tensor) -> None:
        states = (
            self.model(x, output_hidden_states=True, return_dict=True, **self.options).hidden_states or ()
        )
        if (
            states
            and all(state.dim() == 3 for state in states)
            and len({state.shape for state in states}) == 1
        ):
            patch = self.model.config.patch_size
            self.patch = int(patch if isinstance(patch, int) else patch[0])
            lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
            self.last_block = max(lists, key=len)[-1]
        elif not states or any(state.dim() != 4 for state in states):
            raise SlimError(
                f"{folder}: its feature maps cannot be told from its hidden states; choose a convolutional network "
                "(ResNet, ConvNeXt, MobileNet) or a plain vision transformer (ViT, DeiT, DINOv2)"
            )
        elif not last_of_each_stride(states, x.shape[-1]):
            raise SlimError(f"{folder}: has no feature map of stride {SMALLEST_STRIDE} or more")

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.with_features:
            return (self.model(x, return_dict=True, **self.options).logits,)
        if self.last_block is None:
            outputs = self.model(x, output_hidden_states=True, return_dict=True)
            return outputs.logits, *last_of_each_stride(outputs.hidden_states, x.shape[-1])
        grids: list[Tensor] = []
        rows, columns = (side // self.patch for side in x.shape[2:])

        def through_grid(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens, *others = arguments
            special = tokens.shape[1] - rows * columns
            grids.append(tokens[:, special:].transpose(1, 2).unflatten(2, (rows, columns)))
            # the block must see tokens that come from the map, else the logits have no gradient there
            return torch.cat([tokens[:, :special], grids[0].flatten(2).transpose(1, 2)], 1), *others

        hook = self.last_block.register_forward_pre_hook(through_grid)
        try:
            logits: Tensor = self.model(x, return_dict=True, **self.options).logits
        finally:
            hook.remove()
        return logits, *grids

    def sha256(self) -> str:
        """SHA-256 of the model's tensors, by name."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


def last_of_each_stride(maps: tuple[Tensor, ...], side: int) -> tuple[Tensor, ...]:
    """Of feature maps [B, C, h, w], from the input to the output, the last one at each stride from 4 up."""
    last = {round(side / features.shape[-1]): features for features in maps}
    return tuple(last[stride] for stride in sorted(last) if stride >= SMALLEST_STRIDE)


def onnx_session(path: str | Path) -> Any:
    """An onnxruntime session on the processor with one thread; ``SlimError`` for a file that is missing or no model."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise SlimError("ONNX files need onnxruntime: pip install 'slimcodec[eval]'") from error
    if not Path(path).is_file():
        raise SlimError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise SlimError(f"{path}: onnxruntime cannot load it: {reason}") from error
