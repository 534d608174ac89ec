"""``python -m cli`` is ``scenefleet``."""

from cli.main import main

if __name__ == "__main__":
    main()
