"""The networks of a bundle as ONNX files: in a bundle's folder without weights, for other programs with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimcodec.errors import ModelMismatchError, SlimError
from slimcodec.files import atomic_write, inside, load_json, read_bounded
from slimcodec.models.runtime import Graph

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle
    from slimcodec.models.runtime import Stored

#: the folder of a bundle's graphs, and the file there that lists them
FOLDER, INDEX = "graphs", "graphs.json"
#: most bytes of a graph without weights
GRAPH_BYTES = 1 << 22


def read_index(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What the graphs in a bundle's folder are, by name; {} where there are none. Raises ``SlimError`` for those of others."""
    if bundle.folder is None or not (bundle.folder / FOLDER / INDEX).is_file():
        return {}
    path = bundle.folder / FOLDER / INDEX
    try:
        index = load_json(path, GRAPH_BYTES)
        made_for, graphs = str(index["weights_sha256"]), dict(index["graphs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SlimError(f"{path}: the bundle is damaged ({error!r}); get it again") from error
    if made_for != bundle.weights_sha256:
        raise ModelMismatchError(
            f"{path}: made for other weights; make them again with `slim bundle export`", bundle.bundle_id
        )
    return graphs


def read_graph(folder: Path, entry: dict[str, Any]) -> Graph:
    """A graph that the index of a bundle's folder lists; ``SlimError`` where it is not as it was written."""
    try:
        path = inside(folder / FOLDER, str(entry["file"]))
        model = read_bounded(path, GRAPH_BYTES)
        names = [str(name) for name in entry["weights"]]
        # graphs that were made before types were listed take what is stored
        types = [np.dtype(kind) for kind in entry.get("types", [])]
        if any(kind.kind not in "fiu" for kind in types):
            raise ValueError(f"weights of types {types}")
        weights = dict(zip(names, map(str, types), strict=True)) if types else dict.fromkeys(names, "")
        graph = Graph(model, str(entry["part"]), tuple(entry["inputs"]), weights)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SlimError(f"{folder / FOLDER}: the bundle is damaged ({error!r}); get it again") from error
    if hashlib.sha256(model).hexdigest() != entry["sha256"]:
        raise SlimError(f"{path}: not as it was saved; get the bundle again")
    return graph


def copy_graphs(bundle: Bundle, folder: Path) -> None:
    """Writes the graphs of a bundle's own folder into another bundle's; none where it has none."""
    if bundle.folder is None or not bundle.graphs:
        return
    for entry in bundle.graphs.values():
        graph, target = read_graph(bundle.folder, entry), inside(folder / FOLDER, str(entry["file"]))
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, graph.model)
    atomic_write(folder / FOLDER / INDEX, read_bounded(bundle.folder / FOLDER / INDEX, GRAPH_BYTES))


def export(bundle: Bundle, folder: Path, *, weights: bool = True) -> None:
    """Writes the networks of the encoder and of the decoder, the symbol tables and the vocabulary to a folder (made if missing).

    Without ``weights`` graphs take them from the bundle when they are loaded. Needs torch and onnx.
    """
    from slimcodec.models.networks import ENCODER, build_graph, networks, sizes

    if bundle.config.ldm:
        raise SlimError(
            f"{bundle.config.name} stands on a pretrained model; only networks of our own are exported"
        )
    graphs = {}
    for name, network in networks(bundle.config).items():
        graph = build_graph(bundle.config, bundle.stored, name)
        model = with_weights(graph, bundle.stored[graph.part]) if weights else graph.model
        file = Path("encoder" if name in ENCODER else "decoder", f"{name}.onnx")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / file, model)
        known = sizes(bundle.config, graph.part)
        graphs[name] = {
            "file": file.as_posix(),
            "sha256": hashlib.sha256(model).hexdigest(),
            "part": graph.part,
            "inputs": {
                given: [kind, *(known.get(axis, axis) for axis in axes)]
                for given, (kind, *axes) in network.inputs.items()
            },
            "outputs": list(network.outputs),
            "weights": [] if weights else list(graph.weights),
            "types": [] if weights else list(graph.weights.values()),
        }
    index: dict[str, Any] = {"weights_sha256": bundle.weights_sha256, "graphs": graphs}
    if weights:
        index |= _coding(bundle)
        atomic_write(folder / "vocabulary.txt", "".join(f"{tag}\n" for tag in bundle.vocabulary).encode())
    # last, so that a folder with an index is whole
    atomic_write(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _coding(bundle: Bundle) -> dict[str, Any]:
    """What a program needs beside the networks."""
    config, prior = bundle.config, bundle.stored["prior"]
    compressor = config.compressor
    return {
        "bundle_id": bundle.bundle_id,
        "cell": config.cell,
        "channels": compressor.prior.channels,
        "map_of_steps": bool(compressor.step_octaves),
        "captioner": {"side": config.captioners[0].side, "threshold": config.captioners[0].threshold}
        if config.captioners
        else None,
        "tables": {name: prior[f"tables.{name}"].tolist() for name in ("radii", "frequencies")},
    }


def with_weights(graph: Graph, stored: Stored) -> bytes:
    """A model that holds its weights as they are stored, and scales those of 8 bits."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph.model)
    kept, nodes = [], []
    for tensor in model.graph.initializer:
        name = tensor.name
        if name not in graph.weights:
            kept.append(tensor)
            continue
        quantised = f"{name}:int8" in stored
        value = stored[f"{name}:int8" if quantised else name]
        held = f"{name}:int8" if quantised else f"{name}:stored"
        kept.append(numpy_helper.from_array(value, held))
        to = f"{name}:float" if quantised else name
        nodes.append(helper.make_node("Cast", [held], [to], to=tensor.data_type))
        if quantised:
            scale = stored[f"{name}:scale"].reshape(-1, *[1] * (value.ndim - 1))
            kept.append(numpy_helper.from_array(scale, f"{name}:scale"))
            nodes.append(helper.make_node("Mul", [to, f"{name}:scale"], [name]))
    for field, entries in ((model.graph.initializer, kept), (model.graph.node, [*nodes, *model.graph.node])):
        del field[:]
        field.extend(entries)
    return model.SerializeToString()
