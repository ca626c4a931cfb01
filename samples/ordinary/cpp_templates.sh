#!/usr/bin/env bash
# Compiles C++ with heavy headers, twice with other optimisation levels, and runs the results.
# arguments: PROGRAMS
# variants: 3 | 6
# needs: g++
for i in $(seq "$1"); do
  printf '#include <map>\n#include <regex>\n#include <iostream>\nint main(){std::map<std::string,int> m;for(int i=0;i<%d000;i++)m[std::to_string(i)]++;std::cout<<m.size();}\n' "$i" > "p$i.cpp"
  g++ -O0 -o "p$i" "p$i.cpp" && "./p$i" > "out$i"
  g++ -O2 -o "q$i" "p$i.cpp" && "./q$i" >> "out$i"
done
