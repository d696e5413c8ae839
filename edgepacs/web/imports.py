"""Import: one DICOM file a request, sealed as it is read, never a form and never on a disk."""

from flask import Blueprint, Response, jsonify, request

from edgepacs.custody import ingest
from edgepacs.errors import InvalidValue
from edgepacs.model import Role
from edgepacs.web import gate

blueprint = Blueprint("imports", __name__)


@blueprint.post(gate.IMPORT_PATH)
@gate.open_to(Role.TECHNOLOGIST)
def take() -> Response:
    """Take in one instance from a Part 10 body (PS3.10 7.1) of type application/dicom."""
    if request.mimetype != "application/dicom":
        raise InvalidValue("Content-Type", "must be application/dicom")
    receipt = ingest.import_part10(gate.store(), request.stream, source=gate.caller().name)
    return jsonify(outcome=receipt.outcome, study=receipt.study_id, instance=receipt.instance_id)
