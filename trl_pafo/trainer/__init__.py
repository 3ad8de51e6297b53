"""PAFORewardTrainer and all that it is made of. It knows no run, no report and no source of data."""
