// A DICOM peer by dcmjs-dimse: `node peer.cjs` reads a job as one line of JSON and prints what
// happens as lines of JSON. With `requests` it asks the node at `port` for them on one association,
// otherwise it listens on a port of its own until its input ends.
const { createHash } = require("node:crypto");
const { createInterface } = require("node:readline");
const dimse = require("dcmjs-dimse");

const { requests: asked, responses } = dimse;
const { PresentationContextResult, SopClass, Status, TransferSyntax } = dimse.constants;
const COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"; // PS3.4 J.3.5
const LINGER_MS = 600_000; // until a report has come, which ends it
const NATIVE = [TransferSyntax.ExplicitVRLittleEndian, TransferSyntax.ImplicitVRLittleEndian];

function tell(event, values) {
  process.stdout.write(`${JSON.stringify({ event, ...values })}\n`);
}

function made({ service, sop_class, instance, destination, files, values }) {
  const request = {
    echo: () => new asked.CEchoRequest(),
    store: () => new asked.CStoreRequest(instance),
    find: () => new asked.CFindRequest(),
    move: () => new asked.CMoveRequest(),
    get: () => new asked.CGetRequest(),
    create: () => new asked.NCreateRequest(SopClass.ModalityPerformedProcedureStep, instance),
    set: () => new asked.NSetRequest(SopClass.ModalityPerformedProcedureStep, instance),
    commit: () =>
      new asked.NActionRequest(SopClass.StorageCommitmentPushModel, COMMITMENT_INSTANCE, 1),
  }[service]();
  if (sop_class) request.setAffectedSopClassUid(sop_class);
  if (destination) request.getCommandDataset().setElement("MoveDestination", destination);
  if (values) request.setDataset(new dimse.Dataset(values));
  return request;
}

function answered(number, response) {
  const command = response.getCommandDataset().getElements();
  tell("response", {
    number,
    status: response.getStatus(),
    remaining: command.NumberOfRemainingSuboperations,
    completed: command.NumberOfCompletedSuboperations,
    failed: command.NumberOfFailedSuboperations,
    data: response.getDataset()?.getElements(),
  });
}

function stored(request, callback) {
  const { SOPInstanceUID, PatientName, PixelData } = request.getDataset().getElements();
  const pixels = createHash("sha256");
  for (const one of PixelData ?? []) pixels.update(Buffer.from(one));
  tell("stored", {
    uid: SOPInstanceUID,
    syntax: request.getDataset().getTransferSyntaxUid(),
    name: PatientName,
    pixels: pixels.digest("hex"),
  });
  const response = responses.CStoreResponse.fromRequest(request);
  response.setStatus(Status.Success);
  callback(response);
}

function reported(request, callback) {
  tell("report", { type: request.getEventTypeId(), data: request.getDataset().getElements() });
  const response = responses.NEventReportResponse.fromRequest(request);
  response.setStatus(Status.Success);
  callback(response);
}

function ask({ port, calling, requests, report, cancel }) {
  const client = new dimse.Client();
  requests.map(made).forEach((request, number) => {
    request.on("response", (response) => {
      answered(number, response);
      if (cancel && response.getStatus() === Status.Pending) {
        cancel = false;
        client.cancel(request);
        tell("cancelled", { number });
      }
    });
    client.addRequest(request);
  });
  client.on("associationRejected", (reject) => tell("rejected", reject));
  client.on("cStoreRequest", stored);
  client.on("nEventReportRequest", (request, callback) => {
    reported(request, callback);
    client.network.sendAssociationReleaseRequest();
  });
  client.on("associationReleased", () => tell("released", {}));
  client.on("networkError", (error) => tell("broken", { words: error.message }));
  client.on("closed", () => process.exit());
  const opts = report ? { associationLingerTimeout: LINGER_MS } : {};
  client.send("127.0.0.1", port, calling, "EDGEPACS", opts);
}

class Listening extends dimse.Scp {
  associationRequested(association) {
    for (const { id } of association.getPresentationContexts()) {
      const context = association.getPresentationContext(id);
      const found = NATIVE.find((syntax) => context.hasTransferSyntaxUid(syntax));
      if (found) context.setResult(PresentationContextResult.Accept, found);
      else context.setResult(PresentationContextResult.RejectTransferSyntaxesNotSupported);
    }
    tell("asked", { calling: association.getCallingAeTitle() });
    this.sendAssociationAccept();
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }

  cStoreRequest(request, callback) {
    stored(request, callback);
  }

  nEventReportRequest(request, callback) {
    reported(request, callback);
  }
}

function listen(input) {
  input.once("close", () => process.exit());
  const server = new dimse.Server(Listening);
  server.on("listening", () => tell("listening", { port: server.server.address().port }));
  server.on("networkError", (error) => tell("broken", { words: error.message }));
  server.listen({ port: 0, host: "127.0.0.1" });
}

dimse.log.setLevel("error");
const input = createInterface({ input: process.stdin });
input.once("line", (line) => {
  const job = JSON.parse(line);
  if (job.requests) ask(job);
  else listen(input);
});
