"""Kernels are compiled once per machine, not once per process."""

import importlib
import pkgutil

import pytest
from numba.core.dispatcher import Dispatcher

from firstline.benchmark import metrics

MODULES = [module.name for module in pkgutil.iter_modules(metrics.__path__)]
KERNELS = [
    pytest.param(thing, id=f"{name}.{thing.__name__}")
    for name in MODULES
    for thing in vars(importlib.import_module(f"{metrics.__name__}.{name}")).values()
    if isinstance(thing, Dispatcher)
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_compiled_is_kept_on_disk(kernel):
    assert kernel.stats.cache_path
