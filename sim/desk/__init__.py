"""The desk: a primitive-geometry twin of the SO-101 arm, its tasks and its demonstrator, in plain MuJoCo."""
