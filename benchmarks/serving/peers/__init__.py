"""The peers, each as its own documentation sets it up; they run in an environment of their own."""
