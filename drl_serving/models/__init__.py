"""The served model and its releases over HTTP."""
