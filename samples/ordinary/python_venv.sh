#!/usr/bin/env bash
# Creates virtual environments and runs a tool in each.
# arguments: ENVIRONMENTS PAUSE
# variants: 4 0.2 | 10 0
# needs: python3
for i in $(seq "$1"); do
  python3 -m venv --without-pip --copies "env$i"
  "env$i/bin/python" -m json.tool < "env$i/pyvenv.cfg" > /dev/null 2>&1
  "env$i/bin/python" -m timeit -n 20 'sum(range(20000))' > "time$i"
  sleep "$2"
done
rm -rf env*
