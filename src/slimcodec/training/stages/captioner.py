"""Stage ``captioner``: the tagger that names what is in a picture."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.contact_sheet import Tile, map_tiles, picture_tiles
from slimcodec.data.networks import SIDES, EfficientNetLite, ScriptNetwork, read_weights
from slimcodec.errors import SlimError
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import Tagger
from slimcodec.models.config import CaptionerConfig
from slimcodec.training.batches import LABEL_SHARE, Draws, LabelledViews, Views
from slimcodec.training.loop import Stage
from slimcodec.training.pseudo_labels import PseudoLabel
from slimcodec.training.run import Run


class CaptionerStage(Stage[Views]):
    """Cross-entropy to the labels and to what frozen classifiers say.

    With teachers one of them looks at the very view that the tagger sees, at its own resolution (Beyer et al. 2022, "a good
    teacher is patient and consistent"); without, the targets hold what was said of the whole photo.
    """

    name = "captioner"
    rate_factor = 20.0

    def __init__(self, run: Run) -> None:
        """Teachers are asked about every view, or once about every photo, as the recipe says."""
        recipe = run.recipe.captioner
        self.model: Tagger = Tagger(tagger_config(run))
        config = self.model.config
        if not (recipe.train_body or recipe.train_head or config.roi):
            raise SlimError(
                "captioner has nothing to train: set train_body, train_head or network.roi to true"
            )
        if recipe.start_from_weights:
            start_from_weights(self.model, run)
        for part, is_trained in (("body", recipe.train_body), ("head", recipe.train_head)):
            if not is_trained:
                self.model.get_submodule(part).requires_grad_(False)
        # the head that tells the region of interest begins at nothing, on features that are there already
        self.scaled = [weight for name, weight in self.model.named_parameters() if name.startswith("roi_")]
        self.teachers = run.data.teachers if recipe.teachers_see_views else []
        # only what is learnt from is asked for: pseudo-labels are dear
        labels: dict[PseudoLabel, bool] = {"logits": not self.teachers, "mask": config.roi}
        self.batches: LabelledViews = LabelledViews(
            run.data.photos(self.name, *(label for label, is_read in labels.items() if is_read)),
            run.data.vocabulary,
            run.data.thumbnails,
            size=self.teachers[0].side if self.teachers else config.side,
            seed=recipe.optimisation.seed,
            thumbnail_share=recipe.thumbnail_share,
            smallest_area=recipe.smallest_area,
            labelled_later=bool(self.teachers),
        )

    def loss(self, batch: Views, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """- sum_k p_k log softmax(T(x))_k, and the cross-entropy of the region of interest."""
        self.model.train()
        logits, roi = self.model.predict(batch.pictures)
        targets = batch.targets
        if self.teachers:
            teacher = self.teachers[draws.common(0, len(self.teachers))]
            with torch.no_grad():
                soft_labels = teacher((batch.pictures + 1) / 2)[0].softmax(1)
            known = LABEL_SHARE * batch.known.float()[:, None]
            targets = known * targets
            targets[:, : soft_labels.shape[1]] += (1 - known) * soft_labels
        loss = -(targets * logits.log_softmax(1)).sum(1).mean()
        terms: dict[str, Tensor] = {}
        if batch.known.any():
            right = logits.argmax(1) == batch.targets.argmax(1)
            terms["top1_train"] = right[batch.known].float().mean()
        if roi is not None:
            masks = nn.functional.interpolate(batch.masks, roi.shape[2:], mode="bilinear")
            entropy = nn.functional.binary_cross_entropy_with_logits(roi, masks, reduction="none")
            entropy = entropy.mean((1, 2, 3))
            loss = loss + (batch.trust * entropy).mean()
            if batch.trust.any():
                right = ((roi.detach() > 0) == (masks > 0.5)).float().mean((1, 2, 3))
                terms["roi_entropy"] = (batch.trust * entropy.detach()).sum() / batch.trust.sum()
                terms["roi_right"] = (batch.trust * right).sum() / batch.trust.sum()
        return loss, terms

    def samples(self, batch: Views, draws: Draws) -> list[list[Tile]]:
        """Views with what they should and do say, and the regions of interest, annotated and predicted."""
        logits, roi = self.model.predict(batch.pictures)
        tags = self.batches.vocabulary
        answers = zip(*logits.softmax(1).max(1), batch.targets.argmax(1), batch.known, strict=True)
        lines = [
            f"{tags[tag]} {float(chance):.0%} / {tags[target] if known else 'no label'}"
            for chance, tag, target, known in answers
        ]
        columns = [picture_tiles(batch.pictures, lines)]
        if roi is not None:
            size = batch.pictures.shape[2:]
            columns += [
                map_tiles(batch.masks, size, "region of interest"),
                map_tiles(roi.sigmoid(), size, "predicted"),
            ]
        return columns


def tagger_config(run: Run) -> CaptionerConfig:
    """The recipe's tagger for the run's vocabulary."""
    return replace(run.recipe.captioner.network, tags=len(run.data.vocabulary))


def start_from_weights(tagger: Tagger, run: Run) -> None:
    """Copies the weights of a network that comes as a package, else the first teacher's, else the embedded bundle's tagger's."""
    network = tagger.config.network
    if network in SIDES:
        start_from_classifier(tagger, load_classifier(network, as_teacher=True))
        return
    if run.data.teachers:
        start_from_classifier(tagger, run.data.teachers[0])
        return
    embedded = Bundle.from_pretrained()
    known = embedded.config.captioners[0].network
    reason = ""
    if known != network:
        reason = f"is a {known}: set captioner.network.network={known}"
    elif embedded.vocabulary != run.data.vocabulary:
        reason = "has another vocabulary: set teachers.models"
    if reason:
        raise SlimError(
            f"the captioner cannot start from the embedded one, which {reason}, or captioner.start_from_weights=false"
        )
    # the head that tells the region of interest may still be to learn
    tagger.load_state_dict(embedded.captioners[0].state_dict(), strict=False)


def start_from_classifier(tagger: Tagger, teacher: Classifier) -> None:
    """Copies a classifier's weights into a tagger of the same network whose first tags are the classifier's classes.

    Tags beyond them start as very unlikely.
    """
    network, kind = teacher.network, tagger.config.network
    example = "a TorchScript MobileNet-v2" if kind == "mobilenet-v2" else kind
    way_out = f"give {example} first in teachers.models, or set captioner.start_from_weights=false"
    classes: tuple[Tensor, Tensor] | None = None
    try:
        if isinstance(network, EfficientNetLite):
            tagger.body.load_state_dict(network.tagger.body.state_dict())
            classes = network.tagger.head.weight, network.tagger.head.bias
        elif kind == "mobilenet-v2" and isinstance(network, ScriptNetwork):
            classes = read_weights(network.script, tagger.body)
    except (ValueError, RuntimeError):
        classes = None
    if classes is None:
        raise SlimError(f"the captioner cannot start from {teacher.name}, no {kind} of width 1: {way_out}")
    weight, bias = classes
    if len(bias) > len(tagger.head.bias):
        raise SlimError(
            f"{teacher.name} has {len(bias)} classes, the vocabulary {len(tagger.head.bias)} tags: {way_out}, or a longer "
            "data.vocabulary"
        )
    with torch.no_grad():
        tagger.head.weight.zero_()
        tagger.head.bias.fill_(-6)
        tagger.head.weight[: len(bias)] = weight
        tagger.head.bias[: len(bias)] = bias
