"""DCMTK and pynetdicom as real peers, in both directions."""

import shutil
import socket
import subprocess
import time
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from dimse_node import CT, take
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from edgepacs.dimse import AssociationRefused, Limits, ProposedContext, request
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
    IMPLICIT_VR_LE,
    JPEG_LOSSLESS_SV1,
    VERIFICATION,
)

pytestmark = pytest.mark.peers
LIMITS = Limits()
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed")


def ct_data_set() -> bytes:
    """The data set of pydicom's CT_small.dcm as it stands in the file, Explicit VR LE."""
    path = get_testdata_file("CT_small.dcm")
    whole = Path(path).read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    return whole[144 + meta.FileMetaInformationGroupLength :]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout + done.stderr


@needs_dcmtk
def test_echoscu_and_its_abort(node):
    one = node(LIMITS)
    run("echoscu", "--repeat", "3", "127.0.0.1", str(one.port))
    run("echoscu", "--abort", "127.0.0.1", str(one.port))
    ended = one.join()
    assert ended[0] is None
    assert "aborted by the peer" in str(ended[1])


@needs_dcmtk
@pytest.mark.parametrize("length", ["4096", "16384", "131072"])
def test_storescu(node, length):
    one = node(LIMITS)
    path = get_testdata_file("CT_small.dcm")
    options = ("--max-pdu", length, "--max-send-pdu", length, "--repeat", "5")
    run("storescu", *options, "127.0.0.1", str(one.port), path)
    assert one.join() == [None]
    assert len(one.received) == 5
    assert {len(data) for data in one.received} == {len(one.received[0])}
    received = pydicom.dcmread(BytesIO(one.received[0]), force=True)
    assert received.PixelData == pydicom.dcmread(path).PixelData


@needs_dcmtk
def test_storescu_proposing_everything_it_knows(node):
    """128 contexts; native Explicit VR LE is chosen where it is offered."""
    one = node(LIMITS)
    path = get_testdata_file("CT_small.dcm")
    run("storescu", "--propose-lossless", "127.0.0.1", str(one.port), path)
    assert len(one.received) == 1
    syntaxes = {context.transfer_syntax for context in one.associations[0].contexts.values()}
    assert syntaxes <= {EXPLICIT_VR_LE, IMPLICIT_VR_LE, JPEG_LOSSLESS_SV1}


@needs_dcmtk
def test_a_sender_that_leaves_nagle_on_is_not_stalled(node, tmp_path):
    """DCMTK's default: without quick acknowledgements each instance costs 40 ms."""
    count = 60
    data_set = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for number in range(count):
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        data_set.save_as(tmp_path / f"{number}.dcm")
    one = node(LIMITS)
    began = time.monotonic()
    run("storescu", "--scan-directories", "127.0.0.1", str(one.port), str(tmp_path))
    assert time.monotonic() - began < count * 0.040 * 0.7
    assert len(one.received) == count


@pytest.fixture
def storescp(tmp_path):
    """DCMTK's receiver on a free port; its port and folder."""
    if shutil.which("storescp") is None:
        pytest.skip("DCMTK is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["storescp", "--bit-preserving", "--output-directory", str(tmp_path), str(port)]
    process = subprocess.Popen(command)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    yield port, tmp_path
    process.terminate()
    process.wait(5)


def contexts(*syntaxes: str) -> list[ProposedContext]:
    return [
        ProposedContext(abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_VR_LE,)),
        *(ProposedContext(abstract_syntax=CT, transfer_syntaxes=(one,)) for one in syntaxes),
    ]


def call(port: int, proposed: list[ProposedContext], called: str = "ANY-SCP"):
    return request(
        "127.0.0.1", port, calling="EDGEPACS", called=called, contexts=proposed, limits=LIMITS
    )


def test_dcmtk_storescp(storescp):
    port, folder = storescp
    data = ct_data_set()
    with call(port, contexts(EXPLICIT_VR_LE, JPEG_LOSSLESS_SV1)) as association:
        assert association.echo() == 0
        number = association.accepted(CT, EXPLICIT_VR_LE)
        assert association.accepted(CT, JPEG_LOSSLESS_SV1) is None
        for index in range(5):
            uid = f"1.2.3.4.{index}"
            assert association.store(number, CT, uid, (data,)).status == 0
    files = sorted(folder.iterdir())
    assert len(files) == 5
    assert all(file.read_bytes().endswith(data) for file in files)


@pytest.fixture
def pynetdicom_scp():
    """pynetdicom as an acceptor; its port and what it received."""
    received = []

    def keep(event) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0xB000 if len(received) == 2 else 0x0000

    ae = AE("PYNETDICOM")
    ae.require_called_aet = True
    ae.add_supported_context(Verification)
    ae.add_supported_context(CTImageStorage, [EXPLICIT_VR_LE])
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    yield server.server_address[1], received
    server.shutdown()


def test_pynetdicom_scp(pynetdicom_scp):
    port, received = pynetdicom_scp
    data = ct_data_set()
    with call(port, contexts(EXPLICIT_VR_LE), "PYNETDICOM") as association:
        number = association.accepted(CT, EXPLICIT_VR_LE)
        answers = [association.store(number, CT, f"1.2.{n}", (data,)).status for n in range(3)]
        assert association.echo() == 0
    assert answers == [0, 0xB000, 0]
    assert received == [data] * 3
    with pytest.raises(AssociationRefused, match="called AE title not recognised"):
        call(port, contexts(EXPLICIT_VR_LE), "NOBODY")


def test_pynetdicom_scu(node):
    def unhurried(association, message, box) -> None:
        time.sleep(0.02)  # pynetdicom's reactor may steal an answer that comes at once
        take(association, message, box)

    one = node(LIMITS, service=unhurried)
    data_set = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    ae = AE("PYNETDICOM")
    ae.add_requested_context(Verification)
    ae.add_requested_context(CTImageStorage, [IMPLICIT_VR_LE, EXPLICIT_VR_LE])
    association = ae.associate("127.0.0.1", one.port, ae_title="EDGEPACS")
    assert association.is_established
    assert association.send_c_echo().Status == 0
    for _ in range(2):
        assert association.send_c_store(data_set).Status == 0
    chosen = {
        str(one.abstract_syntax): one.transfer_syntax for one in association.accepted_contexts
    }
    assert chosen[CT] == [EXPLICIT_VR_LE]
    association.release()
    assert one.join() == [None]
    assert len(one.received) == 2
