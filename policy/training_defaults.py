"""Default hyperparameters of training, shared by `saccade train` and LeRobot's `lerobot-train`; imports nothing."""

LEARNING_RATE = 1e-3
"""Peak learning rate of training from scratch."""

WARMUP_STEPS = 200
"""Steps of the linear warm-up."""

WEIGHT_DECAY = 0.01
"""AdamW's decay of the weight matrices."""

GRADIENT_CLIP = 1.0
"""Maximum norm of the gradient."""

GROUNDING_WEIGHT = 0.1
"""Weight of the pointing loss."""
