"""The scripted demonstrator of the desk's tasks: skills and inverse kinematics from privileged state."""
