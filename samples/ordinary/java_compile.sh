#!/usr/bin/env bash
# Compiles and runs Java classes.
# arguments: CLASSES
# variants: 3 | 6
# needs: javac java
for i in $(seq "$1"); do
  printf 'public class C%d { public static void main(String[] a) { long s = 0; for (int i = 0; i < 9000000; i++) s += i %% 7; System.out.println(s); } }\n' "$i" > "C$i.java"
  javac "C$i.java" && java -Xmx64m -cp . "C$i" > "out$i"
done
