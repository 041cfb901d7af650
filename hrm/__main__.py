"""`python -m hrm`."""

from hrm.cli.main import main

if __name__ == "__main__":
    main()
