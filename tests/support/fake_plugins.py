"""Code of fake plugins, and of the fixture `install` that installs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

API = "pefttool_api_version = 2\n"
HOOK = "from pefttool import hookimpl\n" + API
ADAPTER = """
from pefttool import Adapter
class Fake(Adapter):
    '''An adapter that does nothing.'''
    def attach(self, model, options, facts): ...
    def save(self, model, folder): ...
    def load(self, model, folder): ...
def named(called, **attributes):
    return type("Fake", (Fake,), {"name": called, "__doc__": Fake.__doc__, **attributes})()
"""

#: (distribution, code of its module, plugin name, version) -> the folder on sys.path that it was installed in.
Install = Callable[..., Path]


def adapters(*names: str) -> str:
    """The code of a plugin that registers adapters of these names."""
    listed = ", ".join(f"named({name!r})" for name in names)
    return HOOK + ADAPTER + f"@hookimpl\ndef register_adapters():\n    return [{listed}]\n"
