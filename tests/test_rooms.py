"""The house's rules: who imports whom, and how large a file or a function may be. The sizes are
those of tests, benchmarks and examples too.

Imports inside a function are rules' business too: `core` does not import a workload anywhere. They
do not count for circles, where they are how a file puts off what takes long; nor does what only a
type checker imports, which is never run.
"""

import ast
import collections
import functools
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from sail_jax import workloads
from tests.support.paths import ROOT

PACKAGE = ROOT / 'sail_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
ALL_FILES = sorted(
    path
    for folder in ('sail_jax', 'tests', 'benchmarks', 'examples', 'docs')
    for path in (ROOT / folder).rglob('*.py')
)
NOT_TESTS = [path for path in ALL_FILES if not path.is_relative_to(ROOT / 'tests')]
WORKLOADS = ('bandit', 'control', 'language')
REGISTRY = 'workloads'
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 6

# A comment on the line of a `def`, or right above it, says why a function has more parameters or
# lines than others: `# parameters: those of the command`, `# lines: one case each`.

# What does not keep to the rules yet, by room. Take a line out once it does: a line that is not
# needed is an error too.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_PARAMETERS: set[str] = set()
IMPORTS: set[tuple[str, str]] = set()
"""(importer, imported), as folders or files of the package."""
CIRCLES: set[frozenset[str]] = set()


def module(path: Path) -> str:
    """'control.kind' of a file."""
    name = '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
    return name.removesuffix('.__init__').removesuffix('__init__')


NAMES = {module(path): path for path in FILES}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def own(dotted: str) -> str | None:
    """The module of the package that an import of this name reads."""
    parts = dotted.split('.')
    if parts[0] != 'sail_jax':
        return None
    while parts and '.'.join(parts[1:]) not in NAMES:
        parts.pop()
    return '.'.join(parts[1:])


def names_of(node: ast.AST) -> list[str]:
    """What an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f'{node.module}.{alias.name}' for alias in node.names]
    return []


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)


def imports(path: Path, at_once: bool = False) -> set[str]:
    """Modules of the package that a file imports; `at_once`: when it is imported itself. What only
    a type checker reads is left out."""

    def walk(node: ast.AST) -> set[str]:
        found = {own(name) for name in names_of(node)}
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if is_typing(child) or (at_once and later):
                continue
            found |= walk(child)
        return found

    return {name for name in walk(tree(path)) if name is not None} - {module(path), ''}


def agree(broken: set, exceptions: set) -> None:
    """What breaks a rule is what is let off above, neither more nor less."""
    assert not broken - exceptions, 'breaks a rule of the house'
    assert not exceptions - broken, 'keeps to the rule now: take it out of the exceptions'


def room(name: str) -> str:
    return name.partition('.')[0]


def forbidden(importer: str, imported: str) -> bool:
    """Whether the file of one room must not import one of another."""
    match room(importer), room(imported):
        case ('core', there):
            return there not in ('core', 'config', 'errors', 'step_size')
        case ('training', there):
            return there in (REGISTRY, *WORKLOADS)
        case (here, there) if here in WORKLOADS:
            return there in {*WORKLOADS, REGISTRY} - {here}
        case (here, there):
            return there in WORKLOADS and here != REGISTRY
    raise AssertionError


def test_rooms_import_what_they_may():
    broken = {
        (name, other)
        for name, path in NAMES.items()
        for other in imports(path)
        if forbidden(name, other)
    }
    agree(broken, IMPORTS)


def late_imports(path: Path) -> list[str]:
    """The modules that a file names to `late`."""
    calls = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
    return [
        call.args[0].value.partition(':')[0]
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == 'late'
    ]


def test_what_is_imported_late_keeps_to_the_rules_and_is_there():
    for name, path in NAMES.items():
        for dotted in late_imports(path):
            assert own(dotted) == dotted.removeprefix('sail_jax.')
            assert not forbidden(name, own(dotted))


def test_no_circle_among_files():
    edges = {name: imports(path, at_once=True) for name, path in NAMES.items()}

    def reached(start: str) -> set[str]:
        seen, todo = set(), [*edges[start]]
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += edges[name]
        return seen

    after = {name: reached(name) for name in edges}
    circles = {
        frozenset(other for other in after[name] if name in after[other])
        for name in edges
        if name in after[name]
    }
    agree(circles, CIRCLES)


def test_only_a_workloads_folder_says_its_name():
    names = {kind.name for kind in workloads.KINDS}
    for name, path in NAMES.items():
        if room(name) in WORKLOADS:
            continue
        strings = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}
        if name == 'reward_commands':  # Of a command that is called as a workload.
            strings -= {'reward'}
        assert not strings & names, f'{name} names a workload; ask its Kind instead'


def types_of(path: Path) -> set[str]:
    """Classes of a file, and its other names that are written as classes are: `Row = dict[...]`."""
    classes = {node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}
    targets = [node.targets[0] for node in tree(path).body if isinstance(node, ast.Assign)]
    aliases = {name.id for name in targets if isinstance(name, ast.Name)}
    return classes | {name for name in aliases if re.match('[A-Z]+[a-z]', name)}


def test_no_two_classes_share_a_name():
    """One word, one meaning; nor is a class called as one of Python's that the package uses."""
    homes = collections.defaultdict(set)
    for name, path in NAMES.items():
        for one in types_of(path):
            homes[one].add(name)
    for path in FILES:
        for dotted in (name for node in ast.walk(tree(path)) for name in names_of(node)):
            where, _, last = dotted.rpartition('.')
            if last in homes and where.partition('.')[0] in sys.stdlib_module_names:
                homes[last].add(where)
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_files_are_short():
    long = {str(path) for path in ALL_FILES if path.read_text().count('\n') > MAX_FILE}
    agree(long, LONG_FILES)


def functions(path: Path) -> list[tuple[str, ast.FunctionDef]]:
    """Every function of a file, by its dotted name."""

    def walk(node: ast.AST, prefix: str) -> list[tuple[str, ast.FunctionDef]]:
        found = []
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f'{prefix}.{child.name}'
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((name, child))
            found += walk(child, name)
        return found

    return walk(tree(path), str(path.relative_to(ROOT)))


@functools.cache
def comments(path: Path) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}


def excused(path: Path, node: ast.FunctionDef, why: str) -> bool:
    """Whether a comment in its signature, or above it and its decorators, says why."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    while first - 1 in comments(path):
        first -= 1
    said = [comments(path).get(line, '') for line in range(first, node.body[0].lineno)]
    return any(text.startswith(why) for text in said)


def parameters(node: ast.FunctionDef) -> int:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    extra = [arguments.vararg, arguments.kwarg]
    return len([a for a in named if a.arg not in ('self', 'cls')]) + sum(map(bool, extra))


@pytest.mark.parametrize(
    ('why', 'measure', 'limit', 'exceptions', 'files'),
    [
        # A test takes what it is parametrised by.
        ('parameters:', parameters, MAX_PARAMETERS, MANY_PARAMETERS, NOT_TESTS),
        (
            'lines:',
            lambda node: node.end_lineno - node.lineno + 1,
            MAX_FUNCTION,
            LONG_FUNCTIONS,
            ALL_FILES,
        ),
    ],
    ids=['parameters', 'lines'],
)
def test_functions_are_small(why, measure, limit, exceptions, files):
    large = {
        name
        for path in files
        for name, node in functions(path)
        if measure(node) > limit and not excused(path, node, why)
    }
    agree(large, exceptions)
