#!/usr/bin/env bash
# Looks for large and old files over the system and sums them up, as disk reports do.
# arguments: SECONDS
# variants: 4 | 9
# needs: find du
while ((SECONDS < $1)); do
  find /usr/share /usr/lib -xdev -size +500k -printf '%s %f\n' 2>/dev/null | sort -n | tail -20 > large
  find /usr/include -name '*.h' -newermt 2020-01-01 2>/dev/null | wc -l >> recent
  du -s /usr/share/doc > usage 2>/dev/null
  sleep 0.3
done
