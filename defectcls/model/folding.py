"""A network for evaluation alone: followed down to its layers, its BatchNorm folded away, a part's output given out."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.models import get_notrace_functions, is_notrace_module
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    """Follows a network down to its layers; BatchNorm is one of them, in whichever mode it will be.

    Args:
        watched: a part, perhaps of many layers, whose output is to be the network's second one.
    """

    def __init__(self, watched: nn.Module | None) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.watched, self.seen = watched, None

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m is self.watched:
            self.seen = output.node
        return output

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, _BatchNorm) or not any(m.children()) or is_notrace_module(type(m))
        return layer or super().is_leaf_module(m, module_qualified_name)


def _trace(body: nn.Module, watched: nn.Module | None = None) -> fx.Graph | None:
    """What a network does, layer by layer; None where that depends on the image.

    Args:
        watched: a part of it whose output is then given out, too.
    """
    tracer = _Tracer(watched)
    try:
        graph = tracer.trace(body)
    except Exception:  # whatever a foreign network does when it is called with a stand-in
        return None
    if watched is not None:
        if tracer.seen is None:
            return None
        output = next(iter(reversed(graph.nodes)))
        output.args = ((output.args[0], tracer.seen),)
    return graph


class Watched(nn.Module):
    """A network that gives out what a part of it makes, too; None where that part is passed by."""

    def __init__(self, body: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.body, self.part = body, part

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, Any]:
        seen: list[Any] = []
        hook = self.part.register_forward_hook(lambda module, inputs, output: seen.append(output))  # noqa: ARG005
        try:
            return self.body.forward(image), seen[-1] if seen else None  # a compiled one may pass by the hook
        finally:
            hook.remove()


def folded(body: nn.Module, part: str | None = None) -> nn.Module:
    """A copy for evaluation alone, with each BatchNorm that follows a convolution folded into its weights.

    The same function but for rounding; MobileNetV2 is nearly twice as fast so. With the name of a part it gives out
    what that makes, too, as `Watched` does.
    """
    body = copy.deepcopy(body).eval()
    watched = None if part is None else body.get_submodule(part)
    graph = _trace(body, watched)
    if graph is None:
        return body if watched is None else Watched(body, watched)
    layers = dict(body.named_modules())
    for node in list(graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv, norm = layers[str(source.target)], layers[str(node.target)]
        if isinstance(norm, nn.BatchNorm2d) and type(conv) is nn.Conv2d and norm.running_mean is not None:
            after = [layer for name in ("drop", "act") if (layer := getattr(norm, name, None)) is not None]  # of timm's
            layers |= {str(source.target): fuse_conv_bn_eval(conv, norm), str(node.target): nn.Sequential(*after)}
            for place in (str(source.target), str(node.target)):
                body.set_submodule(place, layers[place])
    return fx.GraphModule(body, graph)
