"""`python -m shoestring`: the command line where the script `shoestring` is not on the path."""

from shoestring.cli.main import main

main()
