"""Imports a module, then prints which of some others that has imported.

print_imported.py MODULE OTHER ...
"""

import importlib
import sys

module, *others = sys.argv[1:]
importlib.import_module(module)
print([name for name in others if name in sys.modules])
