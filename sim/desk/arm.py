"""The SO-101 arm: joint names, ranges and units, and the MJCF of its kinematics, inertia and servos.

Source: TheRobotStudio/SO-ARM100, Simulation/SO101/so101_new_calib.xml at fda892c. The simulation uses metres and
radians. Observations and actions use LeRobot's units: degrees, and 0 (closed) to 100 (open) for the gripper.
"""

from __future__ import annotations

import numpy as np

PAN_AXIS_POSITION = np.array([0.0388353, 0.0])
"""Position [2] of the first joint's axis on the desk, in metres."""

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""Names of the joints in the model, from the base to the gripper."""

FEATURE_NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
"""LeRobot's names of the joint positions."""

JOINT_RANGES = np.array(
    [
        (-1.91986, 1.91986),
        (-1.74533, 1.74533),
        (-1.69, 1.69),
        (-1.65806, 1.65806),
        (-2.74385, 2.84121),
        (-0.174533, 1.74533),
    ]
)
"""Joint ranges in radians [6, 2], in the order of `JOINTS`."""

HOME = np.array([0.0, -1.2, 0.9, 1.2, 0.0, 0.4])
"""Joint positions [6] near which an episode starts, in radians."""

CONTROL_HZ = 30
"""Control rate: actions per second."""


def to_units(radians: np.ndarray) -> np.ndarray:
    """Convert joint positions [..., 6] from radians to degrees and gripper percent (0 closed, 100 open)."""
    units = np.rad2deg(radians)
    low, high = JOINT_RANGES[5]
    units[..., 5] = (radians[..., 5] - low) / (high - low) * 100.0
    return units


def to_radians(units: np.ndarray) -> np.ndarray:
    """Convert joint positions [..., 6] from degrees and gripper percent to radians; the inverse of `to_units`."""
    radians = np.deg2rad(units)
    low, high = JOINT_RANGES[5]
    radians[..., 5] = low + units[..., 5] / 100.0 * (high - low)
    return radians


def joint_limits() -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest joint positions [6] in degrees and gripper percent."""
    return to_units(JOINT_RANGES[:, 0].copy()), to_units(JOINT_RANGES[:, 1].copy())


DEFAULTS = """
<default>
<default class="so101">
  <joint damping="0.60" frictionloss="0.052" armature="0.028" axis="0 0 1"/>
  <position kp="998.22" kv="2.731" forcerange="-2.94 2.94"/>
  <default class="link"><geom rgba="0.93 0.78 0.22 1" contype="0" conaffinity="0"/></default>
  <default class="finger">
    <geom type="box" rgba="0.20 0.21 0.24 1" friction="1.5 0.05 0.001" condim="4" contype="1" conaffinity="1"/>
  </default>
</default>
</default>
"""


def _inertial(mass: float, centre: str, inertia: str) -> str:
    return f'<inertial mass="{mass}" pos="{centre}" fullinertia="{inertia}"/>'


def _joint(name: str) -> str:
    low, high = JOINT_RANGES[JOINTS.index(name)]
    return f'<joint name="{name}" range="{low} {high}"/>'


def body_xml() -> str:
    """Return the MJCF of the arm's body tree; only the two fingers collide."""
    return f"""
<body name="base" childclass="so101">
  {_inertial(0.147, "0.0137179 -5.2e-05 0.0334843", "1.14686e-4 1.36117e-4 1.30364e-4 -4.6e-7 4.97e-6 9.8e-8")}
  <geom class="link" type="box" pos="0.012 0 0.03" size="0.042 0.03 0.03" rgba="0.20 0.21 0.24 1"/>
  <body name="shoulder" pos="0.0388353 0 0.0624" quat="0 0 -1 0">
    {_joint("shoulder_pan")}
    {_inertial(0.100006, "-0.0307604 -1.7e-05 -0.0252713", "8.3759e-5 8.10403e-5 2.39783e-5 7.6e-8 -1.16e-6 1.5e-7")}
    <geom class="link" type="cylinder" pos="-0.01 0 -0.02" size="0.025 0.026"/>
    <body name="upper_arm" pos="-0.0303992 -0.0182778 -0.0542" quat="0.5 -0.5 -0.5 -0.5">
      {_joint("shoulder_lift")}
      {_inertial(0.103, "-0.0898471 -0.00838224 0.0184089", "4.08002e-5 1.47318e-4 1.42487e-4 -1.97819e-5 -4e-8 9e-9")}
      <geom class="link" type="capsule" fromto="0 0 0.018 -0.11257 -0.028 0.018" size="0.018"/>
      <body name="lower_arm" pos="-0.11257 -0.028 0" quat="0.707107 0 0 0.707107">
        {_joint("elbow_flex")}
        {
        _inertial(0.104, "-0.0980701 0.00324376 0.0182831", "2.87438e-5 1.59844e-4 1.45290e-4 7.41e-6 1.27e-6 -4.9e-8")
    }
        <geom class="link" type="capsule" fromto="0 0 0.018 -0.1349 0.0052 0.018" size="0.016"/>
        <body name="wrist" pos="-0.1349 0.0052 0" quat="0.707107 0 0 -0.707107">
          {_joint("wrist_flex")}
          {_inertial(0.079, "-0.000103 -0.0386143 0.0281156", "3.68263e-5 2.5391e-5 2.1e-5 1.8e-8 -5.3e-8 3.64e-6")}
          <geom class="link" type="capsule" fromto="0 0 0.018 0 -0.05 0.018" size="0.016"/>
          <body name="gripper" pos="0 -0.0611 0.0181" quat="0.0172091 -0.0172091 0.706897 0.706897">
            {_joint("wrist_roll")}
            {_inertial(0.087, "0.000214 0.000245 -0.025187", "2.75087e-5 4.33657e-5 3.45059e-5 -3.4e-7 -5.74e-6 -5e-8")}
            <site name="tool" pos="-0.0079 -0.000218 -0.0981274" quat="0.707107 0 0.707107 0" size="0.002"/>
            <camera name="wrist" pos="0 -0.065 -0.02" xyaxes="1 0 0 0 0.866 0.5" fovy="75"/>
            <geom class="link" type="box" pos="0 0 -0.02" size="0.022 0.02 0.02"/>
            <geom name="fixed_finger" class="finger" pos="-0.0135 0 -0.07" size="0.0045 0.009 0.034" mass="0.001"/>
            <body name="moving_jaw" pos="0.0202 0.0188 -0.0234" quat="0.707107 0.707107 0 0">
              {_joint("gripper")}
              {_inertial(0.012, "-0.00157495 -0.0300244 0.0192755", "6.61e-6 1.89e-6 5.29e-6 -3.2e-7 0 -1.1e-7")}
              <geom name="moving_finger" class="finger" pos="-0.0025 -0.042 0.0189" euler="0 0 -0.12"
                    size="0.0045 0.036 0.009"/>
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>
"""


def actuator_xml() -> str:
    """Return the MJCF of one position servo per joint, in the order of `JOINTS`."""
    # LeRobot limits the gripper's servo to half its torque; so does this model.
    force = {"gripper": 'forcerange="-1.47 1.47"'}
    servos = (
        f'<position class="so101" name="{joint}" joint="{joint}" ctrlrange="{low} {high}" {force.get(joint, "")}/>'
        for joint, (low, high) in zip(JOINTS, JOINT_RANGES, strict=True)
    )
    return f"<actuator>{''.join(servos)}</actuator>"
