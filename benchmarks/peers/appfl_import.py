"""Lets APPFL be imported where torchvision cannot be.

APPFL imports piq for reports on the quality of images, and piq imports torchvision. The package index has torchvision
for GPU builds of torch only, and with a CPU build its import fails. No report is made here, so an empty piq does.
"""

import sys
from types import ModuleType


def _no_report(*_args: object, **_kwargs: object) -> None:
    raise NotImplementedError("this run makes no reports on image quality")


try:
    import piq  # noqa: F401 - whether it can be imported
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("piq", "torchvision")]:
        del sys.modules[name]
    empty = ModuleType("piq")
    empty.brisque = empty.total_variation = _no_report
    sys.modules["piq"] = empty
