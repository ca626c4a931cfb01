#!/usr/bin/env bash
# Installs a user service: builds the program, copies it, writes the systemd unit in the temporary
# home, runs it for a while.
# arguments: SECONDS SERVICES
# variants: 5 2 | 9 6
# needs: gcc
mkdir -p "$HOME/.config/systemd/user" "$HOME/bin"
for i in $(seq "$2"); do
  printf '#include <stdio.h>\n#include <unistd.h>\nint main(void){for(int i=0;i<%d;i++){printf("%%d\\n",i);fflush(stdout);usleep(100000);}}\n' "$1" > "s$i.c"
  gcc -O1 -o "$HOME/bin/s$i" "s$i.c"
  printf '[Service]\nExecStart=%%h/bin/s%s\n[Install]\nWantedBy=default.target\n' "$i" > "$HOME/.config/systemd/user/s$i.service"
  "$HOME/bin/s$i" > "s$i.log"
done
while ((SECONDS < $1)); do tail -n 1 s*.log > status; sleep 0.5; done
