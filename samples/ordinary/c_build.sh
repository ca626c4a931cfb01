#!/usr/bin/env bash
# Builds a small C project with make: many sources, a static library, a program, a test run.
# arguments: SOURCES JOBS
# variants: 25 1 | 60 2
# needs: gcc make ar
for i in $(seq "$1"); do
  printf '#include <stdio.h>\n#include <math.h>\nint f%d(int x){double s=0;for(int i=1;i<x;i++)s+=1.0/i;return (int)s+%d;}\n' "$i" "$i" > "f$i.c"
done
{ seq -f 'int f%.0f(int);' "$1"; echo 'int main(void){int s=0;'; seq -f 's+=f%.0f(1000);' "$1"; echo 'return s==0;}'; } > main.c
printf 'SRC=$(filter-out main.c,$(wildcard *.c))\nrun: main.c lib.a\n\tgcc -O2 -o run main.c lib.a\nlib.a: $(SRC:.c=.o)\n\tar rcs $@ $^\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<\n' > Makefile
make -s -j"$2" && ./run && make -s clean 2>/dev/null
exit 0
