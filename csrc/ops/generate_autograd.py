"""Writes the C++ autograd of all ops from their rules: `generate_autograd.py OUTPUT OPS_FOLDER`.

CMake runs this with the standard library alone. The rules are the literal arguments of `register`
in the ops' Python files; synq_fast/ops/_rule.py says what they mean.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# For each type of a schema: as an argument, what is stored of it, and how that is read.
TYPES = {
    "Tensor": ("const Tensor&", "", ""),
    "Tensor?": ("const std::optional<Tensor>&", "", ""),
    "Tensor[]": ("at::TensorList", "", ""),
    "int": ("int64_t", "{}", "toInt()"),
    "int[]": ("at::IntArrayRef", "{}.vec()", "toIntVector()"),
    "int?": ("std::optional<int64_t>", "{}", "toOptional<int64_t>()"),
    "SymInt": ("c10::SymInt", "{}", "toSymInt()"),
    "SymInt[]": ("c10::SymIntArrayRef", "{}", "toSymIntVector()"),
    "float": ("double", "{}", "toDouble()"),
    "float?": ("std::optional<double>", "{}", "toOptional<double>()"),
    "float[]": ("at::ArrayRef<double>", "{}.vec()", "toDoubleVector()"),
    "bool": ("bool", "{}", "toBool()"),
    "str": ("std::string_view", "std::string({})", "toStringView()"),
    "ScalarType": ("at::ScalarType", "{}", "toScalarType()"),
}
RESULTS = {"Tensor": "Tensor", "Tensor[]": "std::vector<Tensor>"}
HEADER = """// Made from the gradient rules in synq_fast/ops by csrc/ops/generate_autograd.py.
#include "ops/autograd.h"

namespace synq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
"""


def load_rules(folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    """Returns the module of the rules and every rule by its op's name."""
    spec = importlib.util.spec_from_file_location("_rule", folder / "_rule.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_rule"] = module
    spec.loader.exec_module(module)
    rules = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not module.is_call_of(node, "register"):
                continue
            given = {
                keyword.arg: ast.literal_eval(keyword.value)
                for keyword in node.keywords
                if keyword.arg in ("gradients", "once", "recorded")
            }
            name, schema = (ast.literal_eval(argument) for argument in node.args)
            rules[name] = module.make_rule(name, schema, **given)
    return module, rules


def result_type(rule: Any) -> str:
    """Returns the C++ type of what an op returns."""
    types = [RESULTS[type_] for type_ in rule.types]
    return types[0] if len(types) == 1 else f"std::tuple<{', '.join(types)}>"


def parameters(rule: Any) -> str:
    """Returns the C++ parameters of an op."""
    return ", ".join(f"{TYPES[argument.type][0]} {argument.name}" for argument in rule.arguments)


def names(rule: Any) -> str:
    """Returns the arguments of an op for a call with them."""
    return ", ".join(argument.name for argument in rule.arguments)


def camel(name: str) -> str:
    """Returns a name as that of a C++ type."""
    return "".join(part.capitalize() for part in name.split("_"))


def indented(lines: list[str]) -> str:
    """Returns the lines of a function's body."""
    return "\n".join("    " + line for line in lines)


class Writer:
    """Writes one op's autograd."""

    def __init__(self, module: ModuleType, rules: dict[str, Any], rule: Any) -> None:
        self.module = module
        self.rules = rules
        self.rule = rule
        self.types = {argument.name: argument.type for argument in rule.arguments}
        self.types |= dict(zip(rule.results, rule.types, strict=True))
        # Edges of the node are counted over the tensors; an absent one has none.
        tensors = [argument for argument in rule.arguments if argument.is_tensor]
        self.edges = {argument.name: i for i, argument in enumerate(tensors)}
        self.optional = {argument.name for argument in tensors if argument.type == "Tensor?"}
        # What is saved, by its source: its type, and its C++ in the forward pass.
        parts = {k: part for formula in rule.formulas for k, part in rule.saved(formula).items()}
        self.saved_types = {source: self._type_of(part) for source, part in parts.items()}
        self.saved = {source: self._forward_text(part) for source, part in parts.items()}
        tensors = [source for source in parts if self.saved_types[source].startswith("Tensor")]
        # A list first.
        self.tensors = sorted(tensors, key=lambda source: self.saved_types[source] != "Tensor[]")
        values = [source for source in parts if source not in tensors]
        self.keys = {k: k if k.isidentifier() else f"value{i}" for i, k in enumerate(values)}
        self.lists = bool(tensors) and self.saved_types[self.tensors[0]] == "Tensor[]"
        # Of saving anything.
        self.condition = ""
        for formula in rule.formulas:
            if formula.otherwise is not None:
                self.condition = self._forward_text(formula.test)
            if formula.test is not None and (len(rule.formulas) > 1 or not tensors):
                raise SystemExit(f"{rule.name}: a condition is for one formula that saves a tensor")

    def _type_of(self, expression: ast.expr) -> str:
        if isinstance(expression, ast.Name):
            return str(self.types[expression.id])
        if isinstance(expression, ast.IfExp):
            return self._type_of(expression.body)
        if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
            return str(self.module.HELPERS[expression.func.id])
        raise SystemExit(f"{self.rule.name}: cannot tell the type of {ast.unparse(expression)}")

    def _forward_text(self, expression: ast.expr) -> str:
        """Returns an expression of arguments and results in C++."""
        if isinstance(expression, ast.IfExp):
            parts = (expression.test, expression.body, expression.orelse)
            test, body, otherwise = (self._forward_text(part) for part in parts)
            return f"({test} ? {body} : {otherwise})"
        return ast.unparse(expression)

    def declaration(self) -> str:
        """Returns the declaration of the op's kernel."""
        return f"{result_type(self.rule)} {self.rule.name}({parameters(self.rule)});\n"

    def calls(self) -> str:
        """Returns the functions that call the op through the dispatcher."""
        rule = self.rule
        types = ", ".join(TYPES[argument.type][0] for argument in rule.arguments)
        return f"""
{result_type(rule)} call_{rule.name}({parameters(rule)}) {{
  static const auto op = find_op<{result_type(rule)}({types})>("synq_fast::{rule.name}");
  return op.call({names(rule)});
}}

{result_type(rule)} below_{rule.name}({parameters(rule)}) {{
  at::AutoDispatchBelowADInplaceOrView below;
  return call_{rule.name}({names(rule)});
}}
"""

    def node(self) -> str:
        """Returns the autograd node, or nothing for an op that another one stands in for."""
        rule = self.rule
        if rule.recorded:
            return ""
        # What is passed must outlive the call: a view of a string does not.
        given = parameters(rule).replace("std::string_view", "std::string")
        name = f"{camel(rule.name)}Node"
        return f"""
struct {name} : torch::autograd::Function<{name}> {{
  static constexpr bool is_traceable = true;

  static {self._node_result()} forward(AutogradContext* ctx, {given}) {{
{indented(self._forward_body())}
  }}
  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {{
{indented(self._backward_body())}
  }}
}};
"""

    def _node_result(self) -> str:
        return "Tensor" if self.rule.types == ("Tensor",) else "variable_list"

    def _forward_body(self) -> list[str]:
        rule = self.rule
        results = ", ".join(rule.results)
        single = len(rule.results) == 1
        lines = [
            f"auto {results if single else f'[{results}]'} = below_{rule.name}({names(rule)});"
        ]
        if rule.formulas:
            lines.append("ctx->set_materialize_grads(false);")
        if rule.constants():
            constant = ", ".join(rule.results[i] for i in rule.constants())
            lines.append(f"ctx->mark_non_differentiable({{{constant}}});")
        return [*lines, *self._save(), f"return {results if single else f'{{{results}}}'};"]

    def _save(self) -> list[str]:
        """Returns the lines that save what the backward pass reads."""
        lines = []
        kept = [
            f"{source}.value_or(Tensor())" if source in self.optional else self.saved[source]
            for source in self.tensors
        ]
        if self.lists:
            lines.append(f"variable_list kept({kept[0]}.begin(), {kept[0]}.end());")
            lines += [f"kept.push_back({value});" for value in kept[1:]]
            lines.append("ctx->save_for_backward(std::move(kept));")
        elif kept:
            lines.append(f"ctx->save_for_backward({{{', '.join(kept)}}});")
        for source, key in self.keys.items():
            value = TYPES[self.saved_types[source]][1].format(self.saved[source])
            lines.append(f'ctx->saved_data["{key}"] = {value};')
        return [f"if ({self.condition}) {{", *lines, "}"] if self.condition else lines

    def _backward_body(self) -> list[str]:
        rule = self.rule
        refuse = f'refuse_second_derivative("{rule.once}");'
        if not rule.formulas:
            return [refuse]
        lines = [f"if (at::GradMode::is_enabled()) {refuse}"] if rule.once else []
        lines.append("const variable_list saved = ctx->get_saved_variables();")
        lists = sum(argument.type == "Tensor[]" for argument in rule.arguments)
        length = str(len(rule.arguments) - lists)
        if self.lists:
            lines.append(f"const size_t count = saved.size() - {len(self.tensors) - 1};")
            length += f" + {lists} * count"
        lines.append(f"variable_list result({length});")
        for formula in rule.formulas:
            lines += self._formula(formula)
        return [*lines, "return result;"]

    def _read(self, source: str) -> str:
        """Returns what was saved, in the backward pass."""
        if source in self.keys:
            return f'ctx->saved_data["{self.keys[source]}"].{TYPES[self.saved_types[source]][2]}'
        place = self.tensors.index(source)
        if not self.lists:
            return f"saved[{place}]"
        return f"saved[count + {place - 1}]" if place else "at::TensorList(saved.data(), count)"

    def _formula(self, formula: Any) -> list[str]:
        rule = self.rule
        tests = [f"incoming[{i}].defined()" for i in rule.used_gradients(formula)]
        tests = [" || ".join(tests)]
        if len(rule.formulas) > 1:
            tests.append(" || ".join(self._needs(name) for name in formula.of))
        test = " && ".join(f"({part})" if "||" in part else part for part in tests)
        value = self._backward_text(formula.value, "Tensor")
        if self.condition:
            value = f"saved.empty() ? {self._backward_text(formula.otherwise, 'Tensor')} : {value}"
        places = {argument.name: i for i, argument in enumerate(rule.arguments)}
        if self.types[formula.of[0]] == "Tensor[]":
            # A list comes first, so its gradients do.
            return [f"if ({test}) {{", f"  auto part = {value};",
                    "  std::move(part.begin(), part.end(), result.begin());", "}"]  # fmt: skip
        if len(formula.of) == 1:
            return [f"if ({test}) result[{places[formula.of[0]]}] = {value};"]
        lines = [f"if ({test}) {{", f"  auto parts = {value};"]
        for i, name in enumerate(formula.of):
            target = f"result[{places[name]}] = std::move(std::get<{i}>(parts));"
            lines.append(f"  if ({self._needs(name)}) {target}")
        return [*lines, "}"]

    def _needs(self, name: str) -> str:
        before = [other for other, edge in self.edges.items() if edge < self.edges[name]]
        if self.optional.intersection(before):
            raise SystemExit(f"{self.rule.name}: an optional tensor hides the place of {name}")
        text = f"ctx->needs_input_grad({self.edges[name]})"
        if name not in self.optional:
            return text
        return f"({self._read(name)}.defined() && {text})"

    def _backward_text(self, expression: ast.expr, wanted: str) -> str:
        """Returns an expression of saved values and gradients in C++."""
        source = ast.unparse(expression)
        if source in self.saved:
            text = self._read(source)
            return f"present({text})" if wanted == "Tensor?" else text
        if isinstance(expression, ast.Constant) and expression.value is None:
            return "std::nullopt"
        if isinstance(expression, ast.BoolOp):
            parts = [self._backward_text(value, "bool") for value in expression.values]
            return f"({(' && ' if isinstance(expression.op, ast.And) else ' || ').join(parts)})"
        if isinstance(expression, ast.Name):
            gradient = f"incoming[{self.rule.gradients()[expression.id]}]"
            return f"present({gradient})" if wanted == "Tensor?" else gradient
        assert isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name)
        name = expression.func.id
        if name == "needs":
            return self._needs(ast.unparse(expression.args[0]))
        if name in self.module.HELPERS:
            types = ["Tensor"] * len(expression.args)
        else:
            types = [argument.type for argument in self.rules[name].arguments]
            name = f"call_{name}"
        arguments = [
            self._backward_text(argument, type_)
            for argument, type_ in zip(expression.args, types, strict=False)
        ]
        return f"{name}({', '.join(arguments)})"

    def function(self) -> str:
        """Returns the kernel that is registered: it records where it must."""
        rule = self.rule
        if rule.recorded:
            return self._recorded()
        tests = " || ".join(f"needs_node({name})" for name in rule.differentiable)
        first = rule.formulas[0] if rule.formulas else None
        if first is not None and first.test is not None and first.otherwise is None:
            tests = f"({tests}) && {self._forward_text(first.test)}"
        given = ", ".join(
            f"std::string({argument.name})" if argument.type == "str" else argument.name
            for argument in rule.arguments
        )
        apply = f"{camel(rule.name)}Node::apply({given})"
        if self._node_result() == "Tensor" or rule.types == ("Tensor[]",):
            record = f"return {apply};"
        else:
            parts = ", ".join(f"results[{i}]" for i in range(len(rule.results)))
            record = f"const variable_list results = {apply};\n  return {{{parts}}};"
        return f"""
{result_type(rule)} {rule.name}({parameters(rule)}) {{
  if (!({tests})) return below_{rule.name}({names(rule)});
  {record}
}}
"""

    def _recorded(self) -> str:
        rule = self.rule
        stand_in = self.rules[rule.recorded.func.id]
        places = [argument.name for argument in stand_in.arguments]
        given = dict(zip(places, rule.recorded.args, strict=True))
        wanted = [ast.unparse(given[name]) for name in stand_in.differentiable]
        # All of them, so that each is asked for a tangent.
        lines = [f"const bool needs_{name} = needs_node({name});" for name in wanted]
        arguments = []
        for argument in rule.recorded.args:
            text = ast.unparse(argument)
            if self.module.is_call_of(argument, "needs"):
                text = f"needs_{ast.unparse(argument.args[0])}"
            arguments.append(text)
        tests = " || ".join(f"needs_{name}" for name in wanted)
        parts = ", ".join(f"std::get<{i}>(results)" for i in range(len(rule.results)))
        parts = parts if len(rule.results) == 1 else f"{{{parts}}}"
        return f"""
{result_type(rule)} {rule.name}({parameters(rule)}) {{
  {" ".join(lines)}
  if (!({tests})) return below_{rule.name}({names(rule)});
  const auto results = {stand_in.name}({", ".join(arguments)});
  return {parts};
}}
"""


def generate(folder: Path) -> str:
    """Returns the whole source."""
    module, rules = load_rules(folder)
    writers = [Writer(module, rules, rule) for rule in rules.values() if not rule.is_constant]
    parts = [HEADER, *(writer.declaration() for writer in writers)]
    parts += [writer.calls() for writer in writers]
    parts += [writer.node() + writer.function() for writer in writers]
    lines = []
    for name, rule in rules.items():
        kernel = "torch::CppFunction::makeFallthrough()" if rule.is_constant else f"&{name}"
        lines.append(f'  m.impl("{name}", {kernel});')
    registered = "\n".join(lines)
    parts.append(
        f"\n}}  // namespace\n\nTORCH_LIBRARY_IMPL(synq_fast, Autograd, m) {{\n{registered}\n}}\n"
        "\n}  // namespace synq\n"
    )
    return "".join(parts)


def main() -> None:
    """Writes the source, and leaves it alone where nothing has changed."""
    output, folder = Path(sys.argv[1]), Path(sys.argv[2])
    text = generate(folder)
    if not output.is_file() or output.read_text(encoding="utf-8") != text:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
