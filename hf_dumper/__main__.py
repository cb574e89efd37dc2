"""`python -m hf_dumper`, which is also what `accelerate launch -m hf_dumper` starts."""

from hf_dumper.cli import main

main()
