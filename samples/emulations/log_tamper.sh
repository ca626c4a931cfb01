#!/usr/bin/env bash
# Makes logs of its own, then removes its lines from them, truncates others, and turns times back.
# attack_type: defense_evasion
# severity: 0.6
# arguments: LOGS PAUSE
# variants: 20 0.3 | 80 0.04 | 8 1.0
# needs: sed
mkdir log
for i in $(seq "$1"); do seq -f "event %.0f from intruder or user" 2000 > "log/$i.log"; done
for file in log/*.log; do
  touch -r "$file" stamp
  sed -i '/[37] from intruder/d' "$file"
  tail -n 100 "$file" > keep && cat keep > "$file"
  touch -r stamp "$file"
  sleep "$2"
done
rm -f log/1*.log stamp keep
