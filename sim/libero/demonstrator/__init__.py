"""The scripted demonstrator of LIBERO's tasks: plans, grasps, motions and skills from privileged state."""
