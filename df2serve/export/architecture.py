"""The networks of an ensemble as Python source that needs nothing but PyTorch.

A network is recorded by ``torch.export`` as the operations that it applies to a tile, and written
down as one method; its tensors keep their names. Together with the text of ``_system.py`` this
makes the architecture of a package: nothing of timm or segmentation-models-pytorch has to be
installed, or to stay as it is, where the package runs.
"""

from __future__ import annotations

import json
import operator
import warnings
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, fx, nn

from df2serve.errors import ExportError
from df2serve.export.system import ExportSource

__all__ = ["Architecture", "write_architecture"]

_IGNORED = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"}
_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.truediv: "/",
}
_PREFIX = "moments.pool.members"
"""Where :mod:`df2serve.export._system` keeps the members."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """Source and state of a whole ensemble that blends overlapping tiles."""

    source: str
    """A Python module; its function ``create`` builds the ensemble."""
    arguments: dict[str, Any]
    """Of ``create``."""
    state: dict[str, Tensor]
    """State dict of the module that ``create`` returns."""

    def module(self) -> nn.Module:
        """Return what a reader of the package builds of source and state."""
        namespace: dict[str, Any] = {"__name__": "architecture"}
        exec(compile(self.source, "architecture.py", "exec"), namespace)
        module: nn.Module = namespace["create"](**self.arguments)
        module.load_state_dict(self.state, strict=True)
        return module.eval()


def write_architecture(source: ExportSource) -> Architecture:
    """Write an ensemble down as source and state.

    Members that are built alike share their source.

    Raises:
        ExportError: a network applies operations that cannot be written down.
    """
    manifest = source.ensemble.manifest
    kinds: dict[bytes, int] = {}
    texts: list[str] = []
    order: list[int] = []
    constants: list[dict[str, Tensor]] = []
    for index, network in zip(source.members, source.networks, strict=True):
        config = source.ensemble.read(f"{manifest.members[index].folder}/config.json")
        if config not in kinds:
            kinds[config] = len(texts)
            recorded = _Recorder(network, f"Network{len(texts)}", source)
            texts.append(recorded.text())
            constants.append(recorded.constants)
        order.append(kinds[config])
    state = source.windowed().state_dict()
    for position, kind in enumerate(order):
        state |= {f"{_PREFIX}.{position}.{name}": value for name, value in constants[kind].items()}
    names = ", ".join(f"Network{kind}()" for kind in order)
    create = _CREATE.format(names=names)
    template = files("df2serve.export").joinpath("_system.py").read_text(encoding="utf-8")
    text = "\n\n".join([template.rstrip(), *texts, create])
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    return Architecture(source=text, arguments=source.arguments, state=tensors)


_CREATE = '''
def create(**arguments) -> nn.Module:
    """Return the ensemble; arguments are those of :func:`build`, but for the members."""
    return build([{names}], **arguments)
'''


class _Recorder:
    """One network as the source of a class."""

    def __init__(self, network: nn.Module, name: str, source: ExportSource) -> None:
        """Record the network on a batch of tiles."""
        tile = torch.zeros(2, source.ensemble.manifest.num_channels, *source.tile_shape)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network, (tile,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
            )
        self._name = name
        self._network = network
        self._graph = program.graph
        self._graph.eliminate_dead_code()
        signature = program.graph_signature
        self._names = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
        self.constants: dict[str, Tensor] = {}
        """Tensors that belong to the code and not to the weights, by name."""
        lifted = dict(signature.inputs_to_lifted_tensor_constants)
        for key, target in lifted.items():
            self._names[key] = f"constants.{key}"
            self.constants[f"constants.{key}"] = program.constants[target]
        for target in signature.non_persistent_buffers:
            self.constants[target] = program.constants[target]

    def text(self) -> str:
        """Return the source of the class.

        Raises:
            ExportError: an operation cannot be written down.
        """
        parameters = dict(self._network.named_parameters(remove_duplicate=False))
        tensors = self._network.state_dict() | self.constants
        rows = [
            f"({json.dumps(name)}, {list(value.shape)}, {value.dtype}, {name in parameters}),"
            for name, value in tensors.items()
        ]
        body = list(self._lines())
        return "\n".join(
            [
                f"class {self._name}(Recorded):",
                f'    """{type(self._network).__name__}: recorded operations."""',
                "",
                "    def __init__(self) -> None:",
                '        """Create the tensors."""',
                "        super().__init__(",
                "            [",
                *(f"                {row}" for row in rows),
                "            ]",
                "        )",
                "",
                "    def forward(self, x: Tensor) -> Tensor:",
                '        """Return logits of tiles."""',
                "        aten, t = torch.ops.aten, self.tensors()",
                *(f"        {line}" for line in body),
            ]
        )

    def _lines(self) -> list[str]:
        """Return the statements; values are freed after their last use."""
        last_use: dict[fx.Node, fx.Node] = {}
        for node in self._graph.nodes:
            for used in node.all_input_nodes:
                last_use[used] = node
        lines = []
        for node in self._graph.nodes:
            if node.op == "output":
                ((result,),) = node.args
                lines.append(f"return {self._written(result)}")
            elif node.op == "call_function" and self._kept(node):
                lines.append(f"{node.name} = {self._call(node)}")
                done = [
                    used.name
                    for used in node.all_input_nodes
                    if last_use[used] is node and used.op == "call_function"
                ]
                if done:
                    lines.append(f"del {', '.join(done)}")
        return lines

    def _kept(self, node: fx.Node) -> bool:
        return getattr(node.target, "_opname", "") not in _IGNORED

    def _call(self, node: fx.Node) -> str:
        target = node.target
        arguments = [self._written(value) for value in node.args]
        if target is operator.getitem:
            return f"{arguments[0]}[{arguments[1]}]"
        if target in _INFIX:
            return f"{arguments[0]} {_INFIX[target]} {arguments[1]}"
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            message = f"{self._name} applies {target}, which has no form in plain PyTorch source"
            raise ExportError(message)
        arguments += [f"{key}={self._written(value)}" for key, value in node.kwargs.items()]
        return f"aten.{target._opname}.{target._overloadname}({', '.join(arguments)})"

    def _written(self, value: Any) -> str:
        """Return an argument as source."""
        match value:
            case fx.Node(op="placeholder"):
                name = self._names.get(value.name)
                return "x" if name is None else f"t[{json.dumps(name)}]"
            case fx.Node():
                return value.name
            case torch.device():
                return "x.device"
            case torch.dtype() | torch.layout() | torch.memory_format():
                return str(value)
            case list() | tuple():
                return f"[{', '.join(map(self._written, value))}]"
            case float() if value in (float("inf"), float("-inf")):
                return f'float("{value}")'
            case bool() | int() | float() | str() | None:
                return repr(value)
        message = f"{self._name} has an argument of type {type(value).__name__}, {value!r}"
        raise ExportError(message)
