"""Real arms: drivers, the governor between decisions and motors, the control loop, server and client.

Nothing here imports torch, MuJoCo or LeRobot when it is imported: `saccade.robot.client` needs numpy, msgpack and
websockets alone.
"""
