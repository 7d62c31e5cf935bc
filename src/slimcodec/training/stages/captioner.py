"""Stage ``captioner``: the tagger that names what is in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.models.captioner import Tagger
from slimcodec.training.data import LABEL_SHARE, LabelledViews, Views
from slimcodec.training.draws import Draws
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage

#: weight of the region of interest beside the names
ROI_WEIGHT = 1.0
ROI_RATE = 20.0


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
        *,
        train_body: bool = True,
    ) -> None:
        """``train_body``: whether more than the heads is trained."""
        if not train_body:
            model.body.requires_grad_(False)
        self.model: Tagger = model
        self.batches, self.vocabulary, self.teachers = views, vocabulary, list(teachers)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What tells the region of interest begins at nothing on features that are there already: it learns faster."""
        located = [parameter for name, parameter in self.model.named_parameters() if name.startswith("roi_")]
        ids = {id(parameter) for parameter in located}
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        rest = [parameter for parameter in trained if id(parameter) not in ids]
        return [{"params": rest, "lr": learning_rate}, {"params": located, "lr": learning_rate * ROI_RATE}]

    def loss(self, batch: Views, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """- sum_k p_k log softmax(T(x))_k, and the cross-entropy of the region of interest."""
        self.model.train()
        logits, roi = self.model.look(batch.pictures)
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
        if roi is not None and batch.trust.any():
            masks = nn.functional.interpolate(batch.masks, roi.shape[2:], mode="bilinear")
            missed = nn.functional.binary_cross_entropy_with_logits(roi, masks, reduction="none").mean(
                (1, 2, 3)
            )
            right = ((roi.detach() > 0) == (masks > 0.5)).float().mean((1, 2, 3))
            terms["roi_entropy"] = (batch.trust * missed.detach()).sum() / batch.trust.sum()
            terms["roi_right"] = (batch.trust * right).sum() / batch.trust.sum()
            loss = loss + ROI_WEIGHT * (batch.trust * missed).mean()
        return loss, terms

    def samples(self, batch: Views, draws: Draws) -> list[list[Tile]]:
        """Views with what they should and do say, and the regions of interest wanted and found."""
        logits, roi = self.model.look(batch.pictures)
        size = (batch.pictures.shape[3], batch.pictures.shape[2])
        rows = []
        for n, (picture, target) in enumerate(zip(batch.pictures, batch.targets, strict=True)):
            p, tag = logits[n].softmax(0).max(0)
            wanted = self.vocabulary[int(target.argmax())] if batch.known[n] else "nobody said"
            row = [Tile.of(picture, f"{self.vocabulary[int(tag)]} {float(p):.0%} / {wanted}")]
            if roi is not None:
                row.append(Tile.heat(batch.masks[n, 0], size, "region of interest"))
                row.append(Tile.heat(roi[n, 0].sigmoid(), size, "found"))
            rows.append(row)
        return rows
