"""What turns pixels into logits: all that a trained model is to whoever judges with it. No training, no Lightning."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import NO_MAP, Backbone, Look
from defectcls.model.features import laid
from defectcls.model.head import Head
from defectcls.model.likeness import Likeness
from defectcls.model.memory import Joined, of_members
from defectcls.settings import ModelSettings


class Network(nn.Module):
    """A timm backbone with a linear head, and with what joins that to a memory where `model` asks for it.

    Args:
        classes: class name -> defective, in logit order.
        image_size: height and width in pixels.
        members: heads that were solved on all folds but one each; the network's logits are the mean of theirs.

    Raises:
        UserError: a memory is asked for, and the backbone has no map, or there is one member or kind of classes alone.
    """

    def __init__(
        self, model: ModelSettings, classes: dict[str, bool], image_size: tuple[int, int], members: int = 1
    ) -> None:
        super().__init__()
        self.classes, self.options, self.members = classes, model.further, members
        most = 8 if image_size[0] == image_size[1] else 4  # on a side it would be of another shape
        self.ways = [laid(way) for way in range(min(model.test_views, most))]
        self.backbone = Backbone(model.name, model.pool, image_size, levels=model.levels, last=model.last)
        self.head = Head(self.backbone.feature_count, len(classes), members)
        self.joined: Joined | None = None
        sides = [*classes.values()]
        shape = self.backbone.map_shape
        asked, joins = model.head in ("joined", "memory"), len({*sides}) == 2
        if asked and not (joins and (model.head == "joined" or len(sides) == 2)):
            raise UserError(
                f"model.head={model.head} tells sound from defective, and the classes are {', '.join(classes)}: "
                "use target=defect, or model.head=linear"
            )
        if asked and members < 2:
            raise UserError(f"model.head={model.head} remembers what members leave out of a fold each: give members=5")
        if asked and shape is None:
            raise UserError(NO_MAP)
        if shape and joins and members > 1 and model.head != "linear":
            self.joined = Joined(shape[0], sides, members)
        self.likeness: Likeness | None = None  # of a trained one
        self.look: Look | None = None  # stands in for the backbone while it infers

    def forward(self, image: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        """Pixels 0..255, uint8 or float (batch, 3, height, width) -> logits float32 (batch, classes).

        In evaluation the mean over the ways that an image can lie; but a memory sees it as it is: no light turns
        with the part.

        Args:
            folds: number of the fold of each image, which its member alone judges as it has not seen it; -1: the mean
                of all. None: of all images.
        """
        if self.training:
            return self.head(self.backbone(image))
        look: Look = self.look or (lambda image: (self.backbone(image),))
        if self.look is None and self.joined is not None:
            look = self.backbone.inference(with_map=True)
        return self.judge([look(way.change(image, [])) for way in self.ways], folds)

    def answer(self, image: torch.Tensor, look: Look) -> tuple[torch.Tensor, ...]:
        """Logits as of `forward`, and what a likeness says of the image as it lies: `look` sees for both."""
        seen = [look(way.change(image, [])) for way in self.ways]
        assert self.likeness is not None
        return self.judge(seen, None), *self.likeness(image, seen[0][0])

    def judge(self, seen: Sequence[tuple[torch.Tensor, ...]], folds: torch.Tensor | None) -> torch.Tensor:
        """What a backbone makes of the ways that images can lie -> logits as of `forward`."""
        logits = torch.stack([self.head(features) for features, *_ in seen]).mean(0).unflatten(1, (self.members, -1))
        if self.joined is not None:
            logits = self.joined(logits, seen[0][1])
        return of_members(logits, folds)

    def inference(self) -> Callable[..., torch.Tensor]:
        """What gives logits to all who ask, by the weights of now: `forward` in the way of `Backbone.inference`.

        Pixels on any device -> logits float32 on the network's. To be asked for anew when the weights have changed.
        """
        self.eval()
        look = self.backbone.inference(with_map=self.joined is not None)

        @torch.inference_mode()
        def infer(image: torch.Tensor, *folds: torch.Tensor) -> torch.Tensor:
            self.look = look
            try:
                return self(image, *folds)
            finally:
                self.look = None

        return infer
