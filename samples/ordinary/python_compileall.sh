#!/usr/bin/env bash
# Copies part of the Python standard library and compiles it to byte code, then imports it.
# arguments: PACKAGES...
# variants: json email http logging | xml asyncio unittest concurrent multiprocessing
# needs: python3
library=$(python3 -c 'import json, os; print(os.path.dirname(os.path.dirname(json.__file__)))')
mkdir copy
for package in "$@"; do cp -r "$library/$package" "copy/$package"; done
python3 -m compileall -q -f copy
python3 -m pip list --disable-pip-version-check > installed 2>/dev/null
for package in "$@"; do python3 -c "import $package"; sleep 0.3; done
python3 -m compileall -q -f -o 2 copy
