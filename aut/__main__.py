from aut.cli import main

main()
