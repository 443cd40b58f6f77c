"""The scripts of `examples` as modules."""

import importlib.util
from types import ModuleType

from tests.support.paths import ROOT


def load(name: str) -> ModuleType:
    """Of `examples/NAME.py`; its `main` is not run."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
