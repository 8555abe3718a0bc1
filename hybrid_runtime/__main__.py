"""`python -m hybrid_runtime` is the console command."""

from hybrid_runtime.cli import main

main()
