"""Physical arms: drivers, the governor between policy and motors, the control loop, policy server and client.

Importing it imports neither torch, MuJoCo nor LeRobot; `saccade.robot.client` needs only numpy, msgpack and websockets.
"""
