import { Sprawl } from "./sprawl.js";

const SUB = "page";
const ROWS_MAX = 200;
const by_id = (id) => document.getElementById(id);
let sprawl = null;
let subscribed = false;
let paused = false;

by_id("connection").addEventListener("submit", (event) => {
  event.preventDefault();
  sprawl?.close();
  subscribed = false;
  sprawl = new Sprawl(by_id("url").value, by_id("token").value);
  sprawl.addEventListener("state", ({ detail }) => show_state(detail));
  sprawl.addEventListener("record", ({ detail }) => show_record(detail.record));
  sprawl.addEventListener("cursor", ({ detail }) => (by_id("cursor").textContent = `read up to ${detail.cursor}`));
  sprawl.addEventListener("loss", ({ detail }) => tell(`not there any more: ${JSON.stringify(detail)}`));
  sprawl.addEventListener("failure", ({ detail }) => tell(detail.message));
});

by_id("subscription").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    if (subscribed) await sprawl.unsubscribe(SUB);
    subscribed = paused = false;
    by_id("records").replaceChildren();
    await sprawl.subscribe(SUB, by_id("filter").value, by_id("from").value);
    subscribed = true;
    show_pause();
  });
});

by_id("pause").addEventListener("click", () =>
  attempt(async () => {
    await (paused ? sprawl.resume(SUB) : sprawl.pause(SUB));
    paused = !paused;
    show_pause();
  }),
);

by_id("publishing").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => sprawl.publish(by_id("address").value, by_id("text").value));
});

async function attempt(work) {
  tell("");
  try {
    await work();
  } catch (error) {
    tell(error.message);
  }
}

function show_state({ state, text }) {
  by_id("status").textContent = text;
  by_id("status").dataset.state = state;
  for (const id of ["subscribe", "publish"]) by_id(id).disabled = state !== "open";
  if (state !== "open") paused = false; // a new connection begins unpaused
  show_pause();
}

function show_pause() {
  by_id("pause").disabled = !subscribed || by_id("status").dataset.state !== "open";
  by_id("pause").textContent = paused ? "Resume" : "Pause";
}

// What is in a record was written by anybody: it is shown as text, never as HTML.
function show_record(record) {
  const row = by_id("records").insertRow(0);
  const value = record.text ?? (record.value64 !== undefined ? `base64 ${record.value64}` : JSON.stringify(record.value));
  const cells = [new Date(record.timestamp).toLocaleTimeString(), record.topic, record.key ?? record.key64 ?? "", value];
  for (const text of cells) row.insertCell().textContent = text;
  while (by_id("records").rows.length > ROWS_MAX) by_id("records").deleteRow(-1);
}

function tell(text) {
  by_id("told").textContent = text;
}
