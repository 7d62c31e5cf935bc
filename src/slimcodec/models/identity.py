"""What a bundle's id depends on: everything that decoding needs, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from slimcodec.config import remove_setting
from slimcodec.models.pretrained.references import PartReference
from slimcodec.models.storage import Stored, hash_tensors

#: parts of the networks that only the encoder runs: files do not depend on them
ENCODER_ONLY = {
    "autoencoder": ("encoder.", "analysis"),
    "compressor": ("analysis", "enter.", "log_gain", "hyper_analysis.", "log_hyper_gain"),
    "captioner-0": ("roi_",),
}
#: settings that do not change what a file means: those of the encoder, and defaults that a user may override
NOT_IN_ID = (
    "name",
    "training",
    "steps",
    "guidance",
    "machine_guidance",
    "text_scale",
    "autoencoder.encoder_width",
    "autoencoder.encoder_blocks",
    "compressor.analysis_blocks",
    "compressor.hyper_width",
    "captioners.threshold",
    "captioners.roi",
    "captioners.dropout",
    # where a pretrained part comes from: what it is, its hash says
    "caption_model",
    *(f"ldm.parts.{entry.name}" for entry in fields(PartReference) if entry.name not in ("name", "sha256")),
)


def decoding_sha256(facts: list[Any], stored: dict[str, Stored]) -> str:
    """The hash of ``facts`` (format, settings as they were written, text model, vocabulary) and of the decoder's tensors."""
    # as written: a setting that a later release adds must not change the id of an older bundle
    facts = json.loads(json.dumps(facts))
    for path in NOT_IN_ID:
        remove_setting(facts[1], path.split("."))
    described = json.dumps(facts, sort_keys=True)
    return hash_tensors(hashlib.sha256(described.encode()), stored, ENCODER_ONLY)
