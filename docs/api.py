"""Write docs/api.md from signatures and docstrings, which are read and not run: python docs/api.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = {  # what people call, by module
    "Make a dataset": {
        "builders.job": ["Job"],
        "extract.settings": ["Settings"],
        "extract.run": ["run"],
        "builders.job_files": ["job_from_dict", "read_toml", "read_preset"],
    },
    "Vectors": {
        "extract.embedder": ["Embedder"],
        "extract.search": ["open_search"],
        "builders.curate.retrieve": ["Searcher", "Hit"],
        "builders.stored_vectors": ["open_vectors"],
        "builders.quantize": ["VectorFormat", "quantize", "dequantize"],
    },
    "Weights": {"builders.curate.weights": ["load_weights", "weighted_sampler", "Weights", "WeightedSampler"]},
    "Teacher logits": {
        "builders.stored_logits": ["open_logits", "StoredLogits"],
        "builders.packing": ["unpack", "Logits"],
        "builders.read_logits": ["read_logits", "read_batch", "LogitsBatch"],
        "builders.distill": ["Collate", "Targets", "predicting_rows", "cross_entropy", "forward_kl"],
        "builders.trainer": ["ReplayTrainer"],
    },
    "Chats": {
        "builders.chat": ["parse_messages", "template_messages", "stored_messages", "Turn"],
        "builders.encoded": ["encode_chat", "EncodedChat", "ChatEncoder"],
    },
}
OPTIONS = ("builders.job", "extract.settings")  # their fields are what `stillroom run --help` shows
Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """The page, as Markdown."""
    lines = ["# The Python interface", ""]
    lines += [
        "From docstrings, by `python docs/api.py`. Capital letters at the end of a name are axes of its shape.",
        "",
    ]
    for title, modules in PARTS.items():
        lines += [f"## {title}", ""]
        for module, names in modules.items():
            tree = ast.parse((HERE.parent / f"{module.replace('.', '/')}.py").read_text())
            found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | Function)}
            for name in names:
                lines += [f"### {name}", "", *entry(module, found[name])]
    return "\n".join(lines).rstrip() + "\n"


def entry(module: str, node: ast.ClassDef | Function) -> Iterator[str]:
    """One function, or one class with its fields and public methods."""
    code = [f"from {module} import {node.name}", ""]
    if isinstance(node, Function):
        yield from [*fenced([*code, signature(node)]), *prose(node)]
        return
    fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and module not in OPTIONS]
    methods = [one for one in node.body if isinstance(one, Function)]
    begin = [signature(one).replace("__init__", node.name) for one in methods if one.name == "__init__"]
    yield from [*fenced([*code, *(begin or fields)]), *prose(node)]
    for one in methods:
        if not one.name.startswith("_") and ast.get_docstring(one):
            is_property = any("property" in ast.unparse(mark) for mark in one.decorator_list)
            own = one.name if is_property else signature(one)
            yield from [f"`{own}`", "", *prose(one)]


def signature(node: Function) -> str:
    """Name, arguments and result, without `self`."""
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    return f"{node.name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def fenced(lines: list[str]) -> list[str]:
    """A block of Python."""
    while lines and not lines[-1]:
        lines.pop()
    return ["```python", *lines, "```", ""]


def prose(node: ast.AST) -> list[str]:
    """A docstring; what stands deeper than its text is set apart, so that it stays as it is."""
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    return [*re.sub(r"(?m)^(\w+:)\n(?=    )", r"\1\n\n", text).splitlines(), ""]


if __name__ == "__main__":
    (HERE / "api.md").write_text(page())
