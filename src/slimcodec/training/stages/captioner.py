"""Stage ``captioner``: the tagger that names what is in a picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from slimcodec.models.captioner import Tagger
from slimcodec.training.data import LabelledViews, Views
from slimcodec.training.draws import Draws
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage


class CaptionerStage(BaseStage):
    """Cross-entropy to the labels and to frozen classifiers' mean probabilities."""

    name = "captioner"

    def __init__(self, model: Tagger, views: LabelledViews, vocabulary: Sequence[str]) -> None:
        self.model: Tagger = model
        self.batches, self.vocabulary = views, vocabulary

    def loss(self, batch: Views, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """- sum_k p_k log softmax(T(x))_k."""
        self.model.train()
        logits = self.model(batch.pictures)
        loss = -(batch.targets * logits.log_softmax(1)).sum(1).mean()
        terms: dict[str, Tensor] = {}
        if batch.known.any():
            right = logits.argmax(1) == batch.targets.argmax(1)
            terms["top1_train"] = right[batch.known].float().mean()
        return loss, terms

    def samples(self, batch: Views, draws: Draws) -> list[list[Tile]]:
        """Views with what they should and do say."""
        found = self.model(batch.pictures).softmax(1).max(1)
        tiles = [
            Tile.of(
                picture,
                f"{self.vocabulary[int(tag)]} {float(p):.0%} / {self.vocabulary[int(target.argmax())]}",
            )
            for picture, p, tag, target in zip(batch.pictures, *found, batch.targets, strict=True)
        ]
        return [tiles[n : n + 4] for n in range(0, len(tiles), 4)]
