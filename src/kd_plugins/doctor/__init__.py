"""The doctor: finds wrong labels and teacher targets before they cost a training run."""
