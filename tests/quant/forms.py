"""All forms of a network that training and synthesis run, in floating point."""

from torch import fx, nn

from synq_fast.engine.student import build_student
from synq_fast.quant import BitWidths, Structure, find_structure, folded, fused, simplified, trace
from synq_fast.quant.settings import Quantization


def traced(
    module: nn.Module, example, leaves=(), placement: str = "auto"
) -> tuple[fx.GraphModule, fx.GraphModule, Structure]:
    """The graph of a module, a student of it without ranges, and the tap points."""
    graph = trace(module, example, leaves)
    recipe = Quantization(placement=placement)
    student = build_student(graph, BitWidths(4, 4), recipe).eval()
    return graph, student, find_structure(graph, example)


def every_form(
    graph: fx.GraphModule, student: fx.GraphModule, points: Structure
) -> list[fx.GraphModule]:
    """The graph and the student as they are, folded, simplified and fused."""
    inputs = {n.name: n.all_input_nodes[0].name for n in graph.graph.nodes if n.all_input_nodes}
    features = points.bodies
    return [
        graph,
        folded(graph),
        folded(graph, features, features),
        simplified(graph, [inputs[name] for name in points.norms]),
        student,
        fused(student),
        fused(student, (), features),
    ]
