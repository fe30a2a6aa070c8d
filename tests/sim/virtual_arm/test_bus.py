"""The bus of the virtual arm, driven by the vendor's SDK."""

import os
import termios
import time

import pytest
import scservo_sdk
import serial

from saccade.sim.desk.arm import HOME, JOINTS
from saccade.sim.virtual_arm import registers
from saccade.sim.virtual_arm.bus import Bus, packet
from saccade.sim.virtual_arm.calibration import encoders
from saccade.sim.virtual_arm.faults import Fault

pytestmark = pytest.mark.real_time

OK, TIMEOUT, CORRUPT = scservo_sdk.COMM_SUCCESS, scservo_sdk.COMM_RX_TIMEOUT, scservo_sdk.COMM_RX_CORRUPT
ALL = tuple(range(1, 7))
HOME_TICKS = {each.identifier: round(each.ticks(angle)) for each, angle in zip(encoders().values(), HOME, strict=True)}


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_servos_answer_a_ping_with_their_model(sdk):
    for identifier in ALL:
        assert sdk.with_retries(sdk.ping, identifier) == (777, 0)
    assert sdk.ping(7)[1] == TIMEOUT


def test_lerobot_broadcast_ping_finds_all_servos(bus):
    from lerobot.motors import Motor, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    motors = {joint: Motor(number, "sts3215", MotorNormMode.DEGREES) for number, joint in enumerate(JOINTS, 1)}
    theirs = FeetechMotorsBus(str(bus.port), motors)
    theirs.connect()
    assert theirs.broadcast_ping() == dict.fromkeys(ALL, 777)
    theirs.disconnect(disable_torque=False)


def test_registers_are_written_and_read(sdk):
    assert sdk.with_retries(sdk.read1, 2, registers.FIRMWARE_MAJOR)[0] == 3
    assert sdk.with_retries(sdk.write1, 2, registers.TORQUE_ENABLE, 1) == (0,)
    assert sdk.with_retries(sdk.write2, 2, registers.GOAL_POSITION, 1234) == (0,)
    assert sdk.with_retries(sdk.read2, 2, registers.GOAL_POSITION)[0] == 1234
    assert sdk.with_retries(sdk.read1, 2, registers.TORQUE_ENABLE)[0] == 1
    assert sdk.with_retries(sdk.read1, 3, registers.TORQUE_ENABLE)[0] == 0


def test_sync_read_returns_all_positions(sdk):
    values, result = sdk.sync_read(ALL, registers.POSITION)
    if result != OK:  # read again, as replies are late on a busy machine
        sdk.port.ser.reset_input_buffer()
        values, result = sdk.sync_read(ALL, registers.POSITION)
    assert (values, result) == (HOME_TICKS, OK)


def test_sync_write_reaches_each_servo_with_its_own_value(sdk, servos):
    goals = {identifier: 2000 + identifier for identifier in ALL}
    assert sdk.sync_write(goals, registers.GOAL_POSITION) == OK
    assert wait_until(lambda: [servo.goal_ticks() for servo in servos] == list(goals.values()))


def test_registered_write_waits_for_the_action(sdk, servos):
    words = [2100 & 255, 2100 >> 8]
    assert sdk.packets.regWriteTxRx(sdk.port, 2, registers.GOAL_POSITION, 2, words)[0] == OK
    assert servos[1].goal_ticks() == HOME_TICKS[2]
    sdk.packets.action(sdk.port, scservo_sdk.BROADCAST_ID)
    assert wait_until(lambda: servos[1].goal_ticks() == 2100)


def test_goal_is_clamped_to_the_eprom_limits(sdk, servos):
    sdk.with_retries(sdk.write2, 1, registers.MAX_POSITION, 2500)
    sdk.with_retries(sdk.write2, 1, registers.GOAL_POSITION, 3900)
    sdk.with_retries(sdk.write1, 1, registers.TORQUE_ENABLE, 1)
    assert servos[0].goal_ticks() == 2500
    assert encoders()["shoulder_pan"].ticks(servos[0].drive(0.0).goal) == pytest.approx(2500)


def test_status_level_0_answers_reads_only(sdk):
    assert sdk.write1(4, registers.STATUS_LEVEL, 0)[0] == TIMEOUT
    assert sdk.write1(4, registers.TORQUE_ENABLE, 1)[0] == TIMEOUT
    assert sdk.with_retries(sdk.read1, 4, registers.TORQUE_ENABLE)[0] == 1


def test_goal_written_is_set_for_servos_with_torque_only(sdk, bus):
    sdk.with_retries(sdk.write2, 1, registers.GOAL_POSITION, 2000)
    assert not bus.goal_written
    sdk.with_retries(sdk.write1, 1, registers.TORQUE_ENABLE, 1)
    assert not bus.goal_written
    sdk.with_retries(sdk.write2, 1, registers.GOAL_POSITION, 2001)
    assert bus.goal_written


def test_dropped_replies_are_timeouts_and_counted(sdk, faults):
    faults.schedule(Fault("drop", joint="elbow_flex", count=2))
    assert sdk.read2(3, registers.POSITION)[1] == TIMEOUT
    assert sdk.read2(3, registers.POSITION)[1] == TIMEOUT
    assert sdk.with_retries(sdk.read2, 3, registers.POSITION)[0] == HOME_TICKS[3]


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
def test_damaged_replies_are_detected(sdk, faults, kind):
    faults.schedule(Fault(kind, joint="elbow_flex"))
    for _ in range(10):
        assert sdk.read2(3, registers.POSITION)[1] != OK
        sdk.port.ser.reset_input_buffer()
    faults.clear()
    assert sdk.with_retries(sdk.read2, 3, registers.POSITION)[0] == HOME_TICKS[3]


def test_late_reply_stays_in_the_buffer(sdk, faults):
    faults.schedule(Fault("delay", joint="gripper", value=0.3, count=1))
    begin = time.monotonic()
    assert sdk.read2(6, registers.POSITION)[1] == TIMEOUT
    assert time.monotonic() - begin < 0.29
    assert wait_until(lambda: sdk.port.getBytesAvailable() == 8)
    # The vendor's SDK takes the left-over bytes for its next reply.
    sdk.with_retries(sdk.write2, 6, registers.GOAL_POSITION, 1500)


def test_late_servo_does_not_delay_the_others(sdk, faults):
    faults.schedule(Fault("delay", joint="gripper", value=5.0))
    assert sdk.read2(6, registers.POSITION)[1] == TIMEOUT
    assert sdk.with_retries(sdk.read2, 1, registers.POSITION)[0] == HOME_TICKS[1]


def test_replies_come_after_the_latency(servos, faults, tmp_path):
    bus = Bus(servos, faults, tmp_path, latency=0.02)
    port = serial.Serial(str(bus.port), 1_000_000, timeout=2.0)
    begin = time.monotonic()
    port.write(packet(1, 2, bytes([registers.POSITION, 2])))
    assert len(port.read(8)) == 8
    assert time.monotonic() - begin >= 0.02
    port.close()
    bus.close()


@pytest.mark.parametrize("kind", ["silent", "missing"])
def test_silent_servo_ignores_writes(sdk, faults, servos, kind):
    sdk.with_retries(sdk.write1, 5, registers.TORQUE_ENABLE, 1)
    before = servos[4].goal_ticks()
    faults.schedule(Fault(kind, joint="wrist_roll"))
    assert sdk.ping(5)[1] == TIMEOUT
    sdk.sync_write(dict.fromkeys(ALL, 2200), registers.GOAL_POSITION)
    assert wait_until(lambda: servos[5].goal_ticks() == 2200)
    assert servos[4].goal_ticks() == before
    assert (servos[4].drive(0.0).goal is None) == (kind == "missing")
    assert sdk.sync_read(ALL, registers.POSITION)[1] != OK
    faults.clear()
    sdk.port.ser.reset_input_buffer()
    assert sdk.with_retries(sdk.ping, 5) == (777, 0)


def test_model_and_status_faults_show_in_replies(sdk, faults):
    faults.schedule(Fault("model", joint="gripper", value=1284))
    faults.schedule(Fault("status", joint="gripper", value=registers.OVERLOAD_ERROR))
    assert sdk.with_retries(sdk.ping, 6) == (1284, registers.OVERLOAD_ERROR)
    assert "Overload" in sdk.packets.getRxPacketError(registers.OVERLOAD_ERROR)
    assert sdk.with_retries(sdk.ping, 1) == (777, 0)


def test_temperature_and_voltage_faults_show_in_registers(sdk, faults):
    faults.schedule(Fault("temperature", joint="elbow_flex", value=90))
    faults.schedule(Fault("voltage", joint="elbow_flex", value=3.5))
    errors = registers.OVERHEAT_ERROR | registers.VOLTAGE_ERROR
    assert sdk.with_retries(sdk.read1, 3, registers.TEMPERATURE) == (90, errors)
    assert sdk.with_retries(sdk.read1, 3, registers.VOLTAGE) == (35, errors)


def test_power_fault_silences_and_restarts_all_servos(sdk, faults, servos):
    sdk.with_retries(sdk.write1, 1, registers.TORQUE_ENABLE, 1)
    faults.schedule(Fault("power"))
    assert sdk.ping(1)[1] == TIMEOUT
    assert servos[0].drive(0.0).goal is None
    faults.clear()
    time.sleep(0.1)
    assert sdk.with_retries(sdk.read1, 1, registers.TORQUE_ENABLE)[0] == 0


def test_lost_port_returns_under_the_same_name(sdk, bus, faults):
    faults.schedule(Fault("port"))
    assert wait_until(lambda: not os.path.exists(bus.port))
    # The SDK raises by where the port is lost; termios.error is no OSError.
    with pytest.raises((serial.SerialException, OSError, termios.error)):
        for _ in range(3):
            sdk.read2(1, registers.POSITION)
    with pytest.raises(serial.SerialException):
        serial.Serial(str(bus.port))
    faults.clear()
    assert wait_until(lambda: os.path.exists(bus.port))
    again = type(sdk)(str(bus.port))
    assert again.with_retries(again.ping, 1) == (777, 0)
    again.close()


def test_slow_reader_does_not_stop_the_bus(bus):
    port = serial.Serial(str(bus.port), 1_000_000, timeout=0.5, write_timeout=5.0)
    for _ in range(3000):
        port.write(packet(1, 2, bytes([0, 100])))
    assert wait_until(lambda: bus.instructions == 3000, 20.0) and bus.alive
    port.reset_input_buffer()
    time.sleep(0.2)
    port.reset_input_buffer()
    port.write(packet(1, 2, bytes([registers.MODEL, 2])))
    assert port.read(8)[5:7] == (777).to_bytes(2, "little")
    port.close()


@pytest.mark.parametrize("instruction", [2, 3, 4, 5, 6, 0x82, 0x83, 200])
def test_bus_survives_invalid_instructions(sdk, bus, instruction):
    for parameters in (b"", b"\x01", b"\xff\xff", b"\x2a\x02\x01", bytes(40)):
        sdk.port.ser.write(packet(1, instruction, parameters))
    time.sleep(0.1)
    sdk.port.ser.reset_input_buffer()
    assert sdk.with_retries(sdk.ping, 3) == (777, 0)
    assert bus.alive


def test_close_removes_the_port(servos, faults, tmp_path):
    bus = Bus(servos, faults, tmp_path)
    bus.close()
    assert not bus.alive and not os.path.lexists(bus.port)
