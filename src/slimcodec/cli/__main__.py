"""``python -m slimcodec.cli``, the same as ``slim``."""

from slimcodec.cli import main

if __name__ == "__main__":
    main()
