"""The scripts of `examples` as modules."""

import importlib.util
import sys
from types import ModuleType

from tests.support.paths import ROOT


def load(name: str) -> ModuleType:
    """Of `examples/NAME.py`; its `main` is not run."""
    if (folder := str(ROOT / 'examples')) not in sys.path:
        sys.path.append(folder)  # As of a script that Python runs.
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
