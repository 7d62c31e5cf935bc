"""Stage ``captioner``: the tagger that names what is in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimcodec.models.captioner import Tagger
from slimcodec.training.data import LabelledViews, Views
from slimcodec.training.draws import Draws
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage

#: weight of a known label beside a classifier's opinion
LABEL_SHARE = 0.5


class CaptionerStage(BaseStage):
    """Cross-entropy to the labels and to what frozen classifiers say.

    With ``teachers`` one of them looks at the very view that the tagger sees, at its own resolution (Beyer et al. 2022, "a good
    teacher is patient and consistent"); without, the targets hold what was said of the whole photo.
    """

    name = "captioner"

    def __init__(
        self,
        model: Tagger,
        views: LabelledViews,
        vocabulary: Sequence[str],
        teachers: Sequence[Callable[[Tensor], tuple[Tensor, ...]]] = (),
    ) -> None:
        self.model: Tagger = model
        self.batches, self.vocabulary, self.teachers = views, vocabulary, list(teachers)

    def loss(self, batch: Views, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """- sum_k p_k log softmax(T(x))_k."""
        self.model.train()
        logits = self.model(batch.pictures)
        targets = batch.targets
        if self.teachers:
            teacher = self.teachers[draws.common(0, len(self.teachers))]
            with torch.no_grad():
                said = teacher((batch.pictures + 1) / 2)[0].softmax(1)
            known = LABEL_SHARE * batch.known.float()[:, None]
            targets = known * targets
            targets[:, : said.shape[1]] += (1 - known) * said
        loss = -(targets * logits.log_softmax(1)).sum(1).mean()
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
