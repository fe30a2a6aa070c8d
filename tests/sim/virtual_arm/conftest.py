"""A bus with servos but no desk, and the vendor's SDK at the other end of its port."""

from __future__ import annotations

import time

import pytest
import scservo_sdk

from saccade.sim.desk.arm import HOME
from saccade.sim.virtual_arm.bus import Bus
from saccade.sim.virtual_arm.calibration import encoders
from saccade.sim.virtual_arm.faults import FaultInjector
from saccade.sim.virtual_arm.servo import Servo


class Sdk:
    """The vendor's SDK on one port; every call returns the values and the result of the communication."""

    def __init__(self, port):
        self.port = scservo_sdk.PortHandler(port)
        self.packets = scservo_sdk.PacketHandler(0)
        assert self.port.openPort()

    def close(self):
        self.port.closePort()

    def ping(self, identifier):
        return self.packets.ping(self.port, identifier)

    def read1(self, identifier, address):
        return self.packets.read1ByteTxRx(self.port, identifier, address)

    def read2(self, identifier, address):
        return self.packets.read2ByteTxRx(self.port, identifier, address)

    def write1(self, identifier, address, value):
        return self.packets.write1ByteTxRx(self.port, identifier, address, value)

    def write2(self, identifier, address, value):
        return self.packets.write2ByteTxRx(self.port, identifier, address, value)

    def with_retries(self, call, *arguments):
        """Repeat a call up to 20 times, as replies are late on a busy machine; return its values and status."""
        for _ in range(20):
            try:
                *content, result, error = call(*arguments)
            except IndexError:  # a late reply was taken for another one
                result = scservo_sdk.COMM_RX_CORRUPT
            if result == scservo_sdk.COMM_SUCCESS:
                return (*content, error)
            time.sleep(0.05)
            self.port.ser.reset_input_buffer()
        raise AssertionError(f"no answer: {self.packets.getTxRxResult(result)}")

    def sync_read(self, identifiers, address, length=2):
        reader = scservo_sdk.GroupSyncRead(self.port, self.packets, address, length)
        for identifier in identifiers:
            reader.addParam(identifier)
        result = reader.txRxPacket()
        return {each: reader.getData(each, address, length) for each in identifiers}, result

    def sync_write(self, values, address):
        writer = scservo_sdk.GroupSyncWrite(self.port, self.packets, address, 2)
        for identifier, value in values.items():
            writer.addParam(identifier, [value & 255, value >> 8])
        return writer.txPacket()


@pytest.fixture
def faults():
    return FaultInjector(time.monotonic)


@pytest.fixture
def servos(faults):
    positions = zip(encoders().items(), HOME, strict=True)
    return [Servo(joint, encoder, faults, position, 1000) for (joint, encoder), position in positions]


@pytest.fixture
def bus(servos, faults, tmp_path):
    bus = Bus(servos, faults, tmp_path)
    yield bus
    bus.close()


@pytest.fixture
def sdk(bus):
    sdk = Sdk(str(bus.port))
    yield sdk
    sdk.close()
