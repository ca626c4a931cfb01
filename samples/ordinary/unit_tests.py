"""Writes test modules and runs them with unittest, each run in a process of its own.

arguments: RUNS TESTS
variants: 8 60 | 24 10
"""

import subprocess
import sys
from pathlib import Path

runs, tests = int(sys.argv[1]), int(sys.argv[2])
body = "import unittest, tempfile, os\nclass T(unittest.TestCase):\n" + "".join(
    f"    def test_{n}(self):\n"
    f"        with tempfile.TemporaryDirectory() as d:\n"
    f"            p = os.path.join(d, 'x'); open(p, 'w').write('{n}')\n"
    f"            self.assertEqual(open(p).read(), '{n}')\n"
    for n in range(tests)
)
for run in range(runs):
    Path(f"test_case{run}.py").write_text(body)
    subprocess.run([sys.executable, "-m", "unittest", "-q", f"test_case{run}"], check=True)
