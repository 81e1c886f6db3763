"""`python -m blindmerge`: the command, for a process that starts another."""

from blindmerge.cli import main

main()
