#!/usr/bin/env bash
# Looks for set-user-id programs, then tries to get namespaces of its own, as an account without
# rights; nothing is changed.
# attack_type: privilege_escalation
# severity: 0.5
# arguments: ROUNDS PAUSE
# variants: 6 0.8 | 16 0.2 | 4 1.8
# needs: unshare find setpriv
for _ in $(seq "$1"); do
  find /usr/bin /usr/sbin -xdev -perm -4000 > suid 2>/dev/null
  setpriv --reuid 65534 --clear-groups unshare --mount true 2>/dev/null
  setpriv --reuid 65534 --clear-groups unshare --user --map-root-user true 2>/dev/null
  sleep "$2"
done
