"""What the experiments stand on: data sets, training, sweeps, checkpoints, runs and reports."""
