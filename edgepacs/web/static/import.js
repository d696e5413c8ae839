/** Import: many files, one request each, one after the other, with a result for every file. */

import { csrf } from "./page.js";

const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("import"));
const drop = /** @type {HTMLElement} */ (document.getElementById("drop"));
const input = /** @type {HTMLInputElement} */ (document.getElementById("files"));
const area = /** @type {HTMLElement} */ (document.getElementById("import-progress"));
const bar = /** @type {HTMLProgressElement} */ (area.querySelector("progress"));
const words = /** @type {HTMLElement} */ (document.getElementById("import-words"));
const results = /** @type {HTMLElement} */ (document.getElementById("import-results"));
const most = Number(dialog.dataset.most);
const WORDS = { stored: "Stored", duplicate: "Already here", comparing: "Kept aside: other content" };

/** @type {File[]} */
const waiting = [];
const tally = { files: 0, done: 0, failed: 0, bytes: 0, sent: 0 };
let running = false;

/**
 * @param {File} file
 * @param {(sent: number) => void} progress
 * @returns {Promise<{outcome?: keyof typeof WORDS, error?: string}>}
 */
function upload(file, progress) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
    request.open("POST", "/import");
    request.setRequestHeader("Content-Type", "application/dicom");
    request.setRequestHeader("X-CSRF-Token", csrf());
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onerror = () => resolve({ error: "The node did not answer" });
    request.onload = () => {
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        resolve({ error: request.statusText || `Error ${request.status}` });
      }
    };
    request.send(file);
  });
}

/** @param {number} [sent] of the file under way */
function report(sent = 0) {
  bar.max = Math.max(1, tally.bytes);
  bar.value = tally.sent + sent;
  const failed = tally.failed ? `, ${tally.failed} not taken` : "";
  words.textContent = `${tally.done} of ${tally.files} files${failed}`;
}

/**
 * @param {File} file
 * @param {string} result
 * @param {string} kind
 */
function show(file, result, kind) {
  const line = document.createElement("li");
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = file.name;
  const said = document.createElement("span");
  said.className = `result ${kind}`;
  said.textContent = result;
  line.append(name, said);
  results.prepend(line);
}

async function run() {
  if (running) return;
  running = true;
  for (let file = waiting.shift(); file; file = waiting.shift()) {
    const answer = file.size > most
      ? { error: `Larger than ${Math.floor(most / 1048576)} MiB` }
      : await upload(file, report);
    tally.done += 1;
    tally.sent += file.size;
    if (answer.outcome) show(file, WORDS[answer.outcome] ?? answer.outcome, "good");
    else {
      tally.failed += 1;
      show(file, answer.error ?? "Not taken", "bad");
    }
    report();
  }
  running = false;
}

/** @param {Iterable<File>} files */
function take(files) {
  for (const file of files) {
    waiting.push(file);
    tally.files += 1;
    tally.bytes += file.size;
  }
  area.hidden = tally.files === 0;
  report();
  run();
}

/**
 * Every file below a dropped entry.
 * @param {any} entry
 * @returns {Promise<File[]>}
 */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const one of some) found.push(...(await filesOf(one)));
  }
}

input.addEventListener("change", () => {
  take(input.files ?? []);
  input.value = "";
});

for (const over of [drop, document.body]) {
  over.addEventListener("dragover", (event) => {
    event.preventDefault();
    if (!dialog.open && event.dataTransfer?.types.includes("Files")) dialog.showModal();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
document.body.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const items = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.());
  const plain = [...(event.dataTransfer?.files ?? [])];
  if (items.some((entry) => entry?.isDirectory)) {
    for (const entry of items) if (entry) take(await filesOf(entry));
  } else take(plain);
});
