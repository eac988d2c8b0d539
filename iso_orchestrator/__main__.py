"""`python -m iso_orchestrator`."""

from iso_orchestrator.views.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
