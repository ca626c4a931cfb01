#!/usr/bin/env bash
# Computes digits of pi with bc, longer every time.
# arguments: FROM TO STEP
# variants: 400 2200 300 | 100 900 40
# needs: bc
for digits in $(seq "$1" "$3" "$2"); do
  echo "scale=$digits; 4*a(1)" | bc -l > "pi.$digits"
done
