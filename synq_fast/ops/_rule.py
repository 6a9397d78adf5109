"""An op's schema and gradient rule as data.

`csrc/ops/generate_autograd.py` reads this file too, without torch, to write the C++ of the rules;
`_autograd` makes the Python of them. A rule is a Python expression over the names of the schema:

- `grad`, or `grad_<result>` where the schema names its results, is an incoming gradient. A result
  whose gradient no rule mentions is a constant. A rule is skipped where none of its gradients came.
- An argument or result is saved, and so is the value of an expression of them, such as
  `dtype_of(x)`, as it was in the forward pass.
- `needs(x)` is whether this backward pass needs the gradient of `x`.
- A call is that of a registered op or of one of `HELPERS`.
- `rule if flag else grad` saves nothing where the flag is false; with `else None` there is no
  gradient then.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# What a rule may call beside ops, and the type of its value; `_autograd` and autograd.h define it.
HELPERS = {
    "dtype_of": "ScalarType",
    "is_channels_last": "bool",
    "scale_images": "Tensor",
    "strides_of": "SymInt[]",
}


class Argument(NamedTuple):
    """One argument of a schema."""

    type: str
    name: str

    @property
    def is_tensor(self) -> bool:
        """Whether it holds tensors."""
        return self.type.startswith("Tensor")


class Formula(NamedTuple):
    """The gradients of some arguments.

    Attributes:
        of: Names of the arguments; the value is a tuple where there are several.
        value: What computes them.
        test: What must hold in the forward pass, or None.
        otherwise: The value where it does not, a gradient, or None for no gradient at all.
    """

    of: tuple[str, ...]
    value: ast.expr
    test: ast.expr | None
    otherwise: ast.expr | None


class Rule(NamedTuple):
    """What autograd must know about an op.

    Attributes:
        name: Name of the op.
        arguments: Arguments of its schema.
        results: Names of its results, "result" for a single one without a name.
        types: Types of its results.
        formulas: The gradients. Without them, `once` and `recorded` results are constants.
        once: What to call the op in the error of a second derivative; "" where that exists.
        recorded: The call of the op that runs instead where a gradient will be wanted, of whose
            results the first are these; or None.
    """

    name: str
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    types: tuple[str, ...]
    formulas: tuple[Formula, ...]
    once: str
    recorded: ast.Call | None

    @property
    def is_constant(self) -> bool:
        """Whether autograd passes the op by."""
        return not (self.formulas or self.once or self.recorded)

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The arguments whose gradients are wanted: of a refusing op all tensors."""
        if self.formulas:
            return tuple(name for formula in self.formulas for name in formula.of)
        return tuple(argument.name for argument in self.arguments if argument.is_tensor)

    def gradient_name(self, result: str) -> str:
        """Returns what rules call the gradient of a result."""
        return "grad" if self.results == ("result",) else f"grad_{result}"

    def gradients(self) -> dict[str, int]:
        """Returns the names of the incoming gradients and their places."""
        return {self.gradient_name(result): i for i, result in enumerate(self.results)}

    def used_gradients(self, formula: Formula) -> list[int]:
        """Returns the places of the gradients that a formula reads."""
        names = names_in(formula.value)
        return [place for name, place in self.gradients().items() if name in names]

    def constants(self) -> tuple[int, ...]:
        """Returns the places of the results that have no gradient."""
        used = {place for formula in self.formulas for place in self.used_gradients(formula)}
        return tuple(i for i in range(len(self.results)) if self.formulas and i not in used)

    def saved(self, formula: Formula) -> dict[str, ast.expr]:
        """Returns what a formula reads from the forward pass: expressions by their source.

        These are arguments, results, and the largest expressions of them.
        """
        found: dict[str, ast.expr] = {}
        for part in _hoisted(formula.value, set(self.gradients())):
            found[ast.unparse(part)] = part
        return found


def names_in(expression: ast.AST) -> set[str]:
    """Returns the names of values in an expression, without those of functions."""
    calls = {id(node.func) for node in ast.walk(expression) if isinstance(node, ast.Call)}
    return {
        node.id
        for node in ast.walk(expression)
        if isinstance(node, ast.Name) and id(node) not in calls
    }


def is_call_of(expression: ast.AST, name: str) -> bool:
    """Returns whether an expression is a call of the function of this name."""
    return (
        isinstance(expression, ast.Call)
        and isinstance(expression.func, ast.Name)
        and expression.func.id == name
    )


def _hoisted(expression: ast.expr, gradients: set[str]) -> Iterator[ast.expr]:
    late = gradients & names_in(expression) or any(
        is_call_of(node, "needs") for node in ast.walk(expression)
    )
    if not late and names_in(expression):
        yield expression
    elif isinstance(expression, ast.Call) and not is_call_of(expression, "needs"):
        for argument in expression.args:
            yield from _hoisted(argument, gradients)


def make_rule(
    name: str,
    schema: str,
    gradients: Mapping[str, str] | None = None,
    once: str = "",
    recorded: str = "",
) -> Rule:
    """Reads a schema such as "(Tensor x, int bits) -> (Tensor y, Tensor scale)" and its rule."""
    arguments, results = schema.split("->")
    pairs = [part.split("=")[0].split() for part in _parts(arguments)]
    named = [part.split() for part in _parts(results)]
    names = tuple(part[1] if len(part) > 1 else "result" for part in named)
    call = ast.parse(recorded, mode="eval").body if recorded else None
    assert call is None or isinstance(call, ast.Call)
    return Rule(
        name,
        tuple(Argument(re.sub(r"\(\w!\)", "", type_), argument) for type_, argument in pairs),
        names,
        tuple(part[0] for part in named),
        tuple(_formula(of, text) for of, text in (gradients or {}).items()),
        once,
        call,
    )


def _parts(text: str) -> list[str]:
    text = text.strip()
    text = text[1:-1] if text.startswith("(") else text
    return [part.strip() for part in text.split(",") if part.strip()]


def _formula(of: str, text: str) -> Formula:
    names = tuple(name.strip() for name in of.split(","))
    value = ast.parse(text, mode="eval").body
    if not isinstance(value, ast.IfExp):
        return Formula(names, value, None, None)
    absent = isinstance(value.orelse, ast.Constant) and value.orelse.value is None
    return Formula(names, value.body, value.test, None if absent else value.orelse)
