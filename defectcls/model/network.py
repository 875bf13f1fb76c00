"""What turns pixels into logits: all that a trained model is to whoever judges with it. No training, no Lightning."""

from collections.abc import Callable

import torch
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import Backbone, Look
from defectcls.model.features import laid
from defectcls.model.head import Head
from defectcls.model.memory import Joined
from defectcls.settings import ModelSettings


class Network(nn.Module):
    """A timm backbone with a linear head, and with what joins that to a memory where `model` asks for it.

    Args:
        classes: class name -> defective, in logit order.
        image_size: side in pixels.

    Raises:
        UserError: a memory is asked for, and the backbone has no map or the classes are not one sound, one defective.
    """

    def __init__(self, model: ModelSettings, classes: dict[str, bool], image_size: int) -> None:
        super().__init__()
        self.classes, self.options = classes, model.further
        self.ways = [laid(way) for way in range(model.test_views)]
        self.backbone = Backbone(model.name, model.pool, image_size)
        self.head = Head(self.backbone.feature_count, len(classes))
        self.joined: Joined | None = None
        if model.head != "linear":
            if list(classes.values()) != [False, True]:
                raise UserError(
                    f"model.head={model.head} tells sound from defective, and the classes are {', '.join(classes)}: "
                    "use target=defect, or model.head=linear"
                )
            _, maps = self.backbone.inference(with_map=True)(torch.zeros(1, 3, image_size, image_size))
            self.joined = Joined(maps.shape[1])
        self._look: Look | None = None  # stands in for the backbone while it infers

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels 0..255, uint8 or float (batch, 3, side, side) -> logits float32 (batch, classes).

        In evaluation the mean over the ways that an image can lie; but a memory sees it as it is: no light turns with
        the part.
        """
        if self.training:
            return self.head(self.backbone(image))
        look: Look = self._look or (lambda image: (self.backbone(image),))
        if self._look is None and self.joined is not None:
            look = self.backbone.inference(with_map=True)
        seen = [look(way.change(image, [])) for way in self.ways]
        logits = torch.stack([self.head(features) for features, *_ in seen]).mean(0)
        return logits if self.joined is None else self.joined(logits, *seen[0][1:])

    def inference(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gives logits to all who ask, by the weights of now: `forward` in the way of `Backbone.inference`.

        Pixels on any device -> logits float32 on the network's. To be asked for anew when the weights have changed.
        """
        self.eval()
        look = self.backbone.inference(with_map=self.joined is not None)

        @torch.inference_mode()
        def infer(image: torch.Tensor) -> torch.Tensor:
            self._look = look
            try:
                return self(image)
            finally:
                self._look = None

        return infer
