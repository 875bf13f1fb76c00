"""A network for evaluation alone: followed down to its layers, its BatchNorm folded away, a part's output given out."""

import copy

from timm.models import get_notrace_functions, is_notrace_module
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    """Follows a network down to its layers; BatchNorm is one of them, in whichever mode it will be."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, _BatchNorm) or not any(m.children()) or is_notrace_module(type(m))
        return layer or super().is_leaf_module(m, module_qualified_name)


def folded(body: nn.Module, part: str | None = None) -> nn.Module | None:
    """A copy for evaluation alone, with each BatchNorm that follows a convolution folded into its weights.

    The same function but for rounding; MobileNetV2 is nearly twice as fast so. What does otherwise by what it is shown
    cannot be followed, and is copied as it is.

    Args:
        part: name of a part; what that makes is given out besides. None is returned where that is not one tensor.
    """
    body = copy.deepcopy(body).eval()
    try:
        graph = _Tracer().trace(body)
    except Exception:  # whatever a foreign network does when it is called with a stand-in
        return None if part else body
    if part:
        inside = {node for node in graph.nodes if part in node.meta.get("nn_module_stack", {})}
        made = [node for node in inside if node.users.keys() - inside]
        if len(made) != 1:
            return None
        output = next(iter(reversed(graph.nodes)))
        output.args = ((output.args[0], *made),)
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
