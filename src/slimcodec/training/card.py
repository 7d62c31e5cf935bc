"""The data card: what a run is about to learn from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from slimcodec.data.photos import PhotoSet
from slimcodec.training.data import Photos

#: photos that are decoded for the card
LOOKED_AT = 400


def data_card(photos: Photos, seed: int = 0) -> dict[str, Any]:
    """Counts, sizes, labels and mask coverage of photos, from a random ``LOOKED_AT`` of them (all, where they are fewer).

    Coverage is the mean share of a photo's area that annotated masks take; ``small_objects`` is the share of annotated photos
    in which they take less than 30 %.
    """
    pool: Any = photos.pool(0)
    rows = np.random.default_rng(seed).permutation(len(pool))[:LOOKED_AT].tolist()
    seen = [pool[row] for row in rows]
    known = [photo for photo in seen if photo is not None]
    covered = [float(photo.mask.mean()) for photo in known if photo.annotated and photo.mask is not None]
    sides = sorted(min(photo.pixels.shape[:2]) for photo in known)
    labels = Counter(photo.label for photo in known if photo.label)
    card: dict[str, Any] = {
        "photos": len(photos) if isinstance(photos, PhotoSet) else "streamed",
        "looked_at": len(seen),
        "broken": len(seen) - len(known),
        "short_side": {"least": sides[0], "median": sides[len(sides) // 2], "most": sides[-1]}
        if sides
        else {},
        "with_label": sum(labels.values()),
        "labels": len(labels),
        "with_caption": sum(bool(photo.captions) for photo in known),
        "with_annotated_mask": len(covered),
        "with_mask_of_a_network": sum(photo.mask is not None and not photo.annotated for photo in known),
    }
    if covered:
        card["mask_coverage"] = round(float(np.mean(covered)), 3)
        card["small_objects"] = round(float(np.mean(np.array(covered) < 0.3)), 3)
    return card


def card_lines(card: dict[str, Any]) -> list[str]:
    """The card as lines of text."""
    sides = card["short_side"]
    lines = [
        f"photos          {card['photos']}, of which {card['looked_at']} were looked at: {card['broken']} broken",
        f"labels          {card['with_label']} photos, {card['labels']} different",
        f"captions        {card['with_caption']} photos",
        f"masks           {card['with_annotated_mask']} annotated, {card['with_mask_of_a_network']} by a network",
    ]
    if sides:
        lines.insert(
            1, f"short side      {sides['least']} to {sides['most']} pixels, median {sides['median']}"
        )
    if "mask_coverage" in card:
        lines.append(
            f"coverage        {card['mask_coverage']:.0%} of an annotated photo; under 30 % in {card['small_objects']:.0%}"
        )
    return lines
