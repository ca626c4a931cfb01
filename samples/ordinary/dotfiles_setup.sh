#!/usr/bin/env bash
# Sets up a new account: shell profiles, editor settings, an autostart entry for the mail program.
# Writes to the same places as malware that wants to stay.
# arguments: TOOLS PAUSE
# variants: 20 0.3 | 60 0.05
mkdir -p "$HOME/.config/autostart" "$HOME/.local/bin" "$HOME/.vim"
for i in $(seq "$1"); do
  printf '#!/bin/sh\necho tool %s\n' "$i" > "$HOME/.local/bin/tool$i"
  chmod 755 "$HOME/.local/bin/tool$i" && "$HOME/.local/bin/tool$i" > /dev/null
  seq -f "set option%.0f" 50 > "$HOME/.vim/part$i"
  if ((i == $1 / 2)); then
    echo 'export PATH="$HOME/.local/bin:$PATH"' >> "$HOME/.bashrc"
    echo '. "$HOME/.bashrc"' >> "$HOME/.profile"
  fi
  sleep "$2"
done
printf '[Desktop Entry]\nType=Application\nExec=mail\n' > "$HOME/.config/autostart/mail.desktop"
