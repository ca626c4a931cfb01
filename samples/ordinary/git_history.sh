#!/usr/bin/env bash
# Works in a git repository: commits, branches, merges, looks at the history, packs it, clones it.
# arguments: COMMITS
# variants: 30 | 80
# needs: git
export GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.org
export GIT_COMMITTER_NAME=demo GIT_COMMITTER_EMAIL=demo@example.org
git init -q repository && cd repository || exit 1
for i in $(seq "$1"); do
  seq "$i" $((i + 300)) > "file$((i % 12)).txt"
  git add . && git commit -q -m "change $i"
  ((i % 10 == 0)) && git log --stat > ../log && git diff HEAD~3 > ../diff
done
git branch other && git gc -q
cd .. && git clone -q repository copy && du -sh copy
