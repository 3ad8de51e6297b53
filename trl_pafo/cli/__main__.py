"""`python -m trl_pafo.cli`, for `accelerate launch -m trl_pafo.cli COMMAND ...`."""

from trl_pafo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
