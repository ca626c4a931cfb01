"""Libraries that others load where they find them, and a worker has no use for: 11 MB.

Litestar's plugins for pydantic, attrs and Starlette, structlog's coloured tracebacks by rich, and
uvicorn's reloader look whether these can be imported. Imported first, this says: they cannot.
"""

import sys

UNUSED = ("attr", "attrs", "pydantic", "rich", "starlette", "watchfiles")

for name in UNUSED:
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python: it is not to be found
