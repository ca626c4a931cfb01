#!/usr/bin/env bash
# A Node program bundles and minifies modules, in rounds, as a watch task does.
# arguments: MODULES ROUNDS PAUSE_MS
# variants: 80 5 300 | 250 8 50
# needs: node
cat > bundle.js <<'JS'
const fs = require('fs');
const [modules, rounds, pause] = process.argv.slice(2).map(Number);
fs.mkdirSync('src', { recursive: true });
for (let i = 0; i < modules; i++)
  fs.writeFileSync(`src/m${i}.js`, `// module ${i}\nexports.value = ${i};\n`.repeat(60));
let round = 0;
function build() {
  const text = fs.readdirSync('src').map(f => fs.readFileSync('src/' + f, 'utf8')).join('\n');
  fs.writeFileSync('bundle.tmp', text.replace(/\/\/.*\n/g, '').replace(/\s+/g, ' '));
  fs.renameSync('bundle.tmp', 'bundle.js.out');
  if (++round < rounds) setTimeout(build, pause);
}
build();
JS
for i in 1 2 3; do node bundle.js "$@"; done
