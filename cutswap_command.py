"""The console script `cutswap`: it starts our own modules, whatever modules of the user have their names.

A `cli.py`, `train.py` or `pipeline.py` in the working directory or on PYTHONPATH comes before an installed package.
Once ours are imported, their parts are found without a search. A worker process runs the script again before its task.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

# Python looks for modules in the working directory of a process that it spawns; this keeps it from that.
os.environ.setdefault("PYTHONSAFEPATH", "1")
_FOLDER = str(Path(__file__).parent)
sys.path.insert(0, _FOLDER)
try:
    _cli, *_ = [import_module(name) for name in ("cli", "pipeline", "train")]
finally:
    # Other packages are found where they were found before.
    sys.path.remove(_FOLDER)


def main() -> None:
    """Run the command line."""
    _cli.main()
