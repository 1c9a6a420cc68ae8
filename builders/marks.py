"""Marks in a chat template's syntax tree: where a loop begins and ends, and at each of its passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builders.template import MARK

if TYPE_CHECKING:
    from jinja2 import nodes

PLANS = ("loops", "everywhere", "collected")
Holder = tuple[str, str]  # an attribute of a namespace in which a template collects text


def marked_tree(tree: nodes.Template, plan: str) -> nodes.Template:
    """Add marks to a template: `(` and `)` around loops, `=` at each pass, `<` and `>` within `{% generation %}`.

    A pass belongs to the message that the loop's variable is, or to `messages[i]` where a loop over `i` assigns it to
    a name. Plan `loops` leaves alone what is captured (macros, `{% set %}`, `{% call %}` and `{% filter %}` blocks),
    where a mark could be counted, cut or printed twice; `everywhere` marks loops there too. Plan `collected` is for
    loops that print nothing but append text to an attribute of a namespace: it appends marks there.
    """
    from jinja2 import nodes

    marker = (_Collector if plan == "collected" else _Marker)(nodes, plan)
    marker.visit(tree, is_captured=False)
    return tree


class _Marker:
    def __init__(self, nodes: Any, plan: str) -> None:
        self.nodes = nodes
        self.plan = plan
        self.captures = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)

    def visit(self, node: Any, *, is_captured: bool) -> None:
        for name in ("body", "else_", "elif_"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                setattr(node, name, [new for child in children for new in self.rewrite(child, is_captured)])

    def rewrite(self, node: Any, is_captured: bool) -> list[Any]:
        is_generation = self.is_generation(node)
        hidden = is_captured or (isinstance(node, self.captures) and not is_generation)
        self.visit(node, is_captured=hidden)
        if is_generation:
            node.body = [*self.mark("<"), *node.body, *self.mark(">")]
        if isinstance(node, self.nodes.For) and (not hidden or self.plan == "everywhere"):
            return self.mark_loop(node)
        return [node]

    def is_generation(self, node: Any) -> bool:
        if not isinstance(node, self.nodes.CallBlock):
            return False
        return getattr(node.call.node, "name", "") == "_generation_support"

    def mark_loop(self, loop: Any) -> list[Any]:
        target = loop.target
        if not isinstance(target, self.nodes.Name):
            return [loop]
        self.mark_assignments(loop, target.name)
        loop.body[:0] = self.mark("=", target.name)
        return [*self.mark("("), loop, *self.mark(")")]

    def mark_assignments(self, node: Any, index: str) -> None:
        """Put a mark behind `{% set message = messages[i] %}`, also where it stands in an `{% if %}`."""
        node.body = self.marked_lookups(node.body, index)

    def marked_lookups(self, children: list[Any], index: str) -> list[Any]:
        body = []
        for child in children:
            body.append(child)
            if isinstance(child, self.nodes.Assign) and self.is_lookup(child, index):
                body += self.mark("=", child.target.name)
            elif isinstance(child, self.nodes.If):
                for branch in (child, *child.elif_):
                    self.mark_assignments(branch, index)
                child.else_ = self.marked_lookups(child.else_, index)
        return body

    def is_lookup(self, node: Any, index: str) -> bool:
        value = node.node
        return (
            isinstance(node.target, self.nodes.Name)
            and isinstance(value, self.nodes.Getitem)
            and isinstance(value.arg, self.nodes.Name)
            and value.arg.name == index
        )

    def mark(self, kind: str, name: str | None = None) -> list[Any]:
        """Make the statements that print a mark."""
        return [self.nodes.Output([self.call(kind, name)], lineno=1)]

    def call(self, kind: str, name: str | None) -> Any:
        nodes = self.nodes
        args = [nodes.Const(kind), *([nodes.Name(name, "load")] if name else [])]
        return nodes.Call(nodes.Name(MARK, "load"), args, [], None, None)


class _Collector(_Marker):
    """Appends marks where a loop appends text: `{% set ns.out = ns.out ~ … %}`, or with `+`."""

    def __init__(self, nodes: Any, plan: str) -> None:
        super().__init__(nodes, plan)
        self.holders: list[Holder] = []

    def mark_loop(self, loop: Any) -> list[Any]:
        assigned = list(loop.find_all(self.nodes.Assign))
        own = {node.target.name for node in assigned if isinstance(node.target, self.nodes.Name)}
        found = dict.fromkeys(holder for node in assigned if (holder := self.holder(node)))
        self.holders = [holder for holder in found if holder[0] not in own]
        return super().mark_loop(loop)

    def holder(self, node: Any) -> Holder | None:
        """Tell what an assignment appends to."""
        target, first = node.target, node.node
        if not isinstance(target, self.nodes.NSRef):
            return None
        while isinstance(first, self.nodes.Add | self.nodes.Concat):
            first = first.left if isinstance(first, self.nodes.Add) else first.nodes[0]
        is_same = isinstance(first, self.nodes.Getattr) and isinstance(first.node, self.nodes.Name)
        is_same = is_same and (first.node.name, first.attr) == (target.name, target.attr) and first is not node.node
        return (target.name, target.attr) if is_same else None

    def mark(self, kind: str, name: str | None = None) -> list[Any]:
        nodes = self.nodes
        marks = []
        for space, attr in self.holders:
            text = nodes.Concat([nodes.Getattr(nodes.Name(space, "load"), attr, "load"), self.call(kind, name)])
            marks.append(nodes.Assign(nodes.NSRef(space, attr), text, lineno=1))
        return marks
