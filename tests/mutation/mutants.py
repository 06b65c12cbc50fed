"""The mutants of a file: copies of its code with one small change each, made by the operators of mutmut 3.

mutmut itself changes functions only, and needs a module from which they are imported. Here the whole file is replaced,
so that constants, scripts, and functions that are decorated or nested are mutated too. Not mutated: annotations,
docstrings, the wording of messages and help texts (no test should fix them), imports, decorators, calls of len and
isinstance.
"""

import ast
import difflib
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider, WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

MESSAGE_KEYWORDS = ("help", "metavar", "description", "epilog", "desc", "default_text", "unit")
MESSAGE_CALL = m.Call(
    func=m.Name("print")
    | m.Name("_fail")
    | m.Attribute(attr=m.Name("error") | m.Name("warn") | m.Name("set_postfix_str"))
    | m.Attribute(value=m.Name("bar") | m.Name("tqdm"), attr=m.Name("write"))
)
SKIPPED = (
    m.Annotation()
    | m.Import()
    | m.ImportFrom()
    | m.Decorator()
    | m.Raise()
    | MESSAGE_CALL
    | m.Call(func=m.Name("len") | m.Name("isinstance"))
    | m.Arg(keyword=m.Name(m.MatchIfTrue(lambda name: name in MESSAGE_KEYWORDS)))
    | m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.ConcatenatedString())])  # a docstring
)


@dataclass(frozen=True)
class Mutant:
    """One changed file."""

    first: int  # line of the original where the changed expression or statement begins
    last: int  # and where it ends
    code: str  # the whole file
    diff: str  # the lines that changed: "-before", "+after"


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a file's text that Python accepts, all different, in the order of their lines."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Visitor()
    wrapper.visit(visitor)
    original, mutants = ast.dump(ast.parse(source)), {}
    for place, extent, node in visitor.changes:
        code = _replaced(source, extent, wrapper.module.code_for_node(node))
        if code not in mutants and _is_another_program(code, original):
            first, last = place.start.line, place.end.line
            mutants[code] = Mutant(first, last, code, _diff(source, code, first, last))
    return sorted(mutants.values(), key=lambda mutant: mutant.first)


class _Visitor(cst.CSTVisitor):
    """Collects (place, place with the spaces around it, new node) for each change that an operator proposes."""

    METADATA_DEPENDENCIES = (PositionProvider, WhitespaceInclusivePositionProvider)

    def __init__(self):
        super().__init__()
        self.changes: list[tuple[CodeRange, CodeRange, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, SKIPPED):
            return False
        place = self.get_metadata(PositionProvider, node, None)
        extent = self.get_metadata(WhitespaceInclusivePositionProvider, node, None)
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and place and extent:
                new = list(operator(node))
                # Of a string's three changes only "XX…XX": the two of its case say little that this one does not.
                self.changes += [(place, extent, one) for one in (new[:1] if operator is operator_string else new)]
        return True


def _replaced(source: str, extent: CodeRange, text: str) -> str:
    """The source with the text in place of what the range covers."""
    lines = source.splitlines(keepends=True)
    start, end = (sum(map(len, lines[: at.line - 1])) + at.column for at in (extent.start, extent.end))
    return source[:start] + text + source[end:]


def _is_another_program(code: str, original: str) -> bool:
    """Whether Python accepts the code and its syntax tree is not the original's, which is given as a dump."""
    try:
        compile(code, "mutant", "exec")
        return ast.dump(ast.parse(code)) != original
    except (SyntaxError, ValueError):
        return False


def _diff(source: str, code: str, first: int, last: int) -> str:
    before, after = source.splitlines(), code.splitlines()
    after = after[first - 1 : last + len(after) - len(before)]
    lines = list(difflib.unified_diff(before[first - 1 : last], after, n=0, lineterm=""))[2:]  # without the names
    return "\n".join(line for line in lines if not line.startswith("@@"))
