"""structlog without rich, for processes that serve.

Where rich is installed, which `visor` shows progress by, structlog loads it for tracebacks on terminals. The logs of
a daemon have no use for it, and its memory is kept for good. To be imported before anything else imports structlog.
"""

from __future__ import annotations

import sys
from typing import Any, cast

_modules = cast(dict[str, Any], sys.modules)
_hidden = "rich" not in _modules and "structlog" not in _modules
if _hidden:
    _modules["rich"] = None  # an import of it is an ImportError
try:
    import structlog
finally:
    if _hidden:
        del _modules["rich"]

__all__ = ["structlog"]
