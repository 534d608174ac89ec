"""A module of the product changed in the nodes that a test starts, without a line of it in the product."""

from __future__ import annotations

from pathlib import Path

_SITECUSTOMIZE = """\
import importlib
import importlib.util
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            importlib.import_module("{where}").{wrap}(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def wrap_on_import(folder: Path, module: str, where: str, wrap: str) -> None:
    """Let a Python that has ``folder`` in PYTHONPATH call ``where.wrap`` with a module after its first import."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(module=module, where=where, wrap=wrap))
