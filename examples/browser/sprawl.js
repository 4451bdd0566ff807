// A small client of sub-protocol sprawl.v1.json: connects again by itself, and goes on exactly where it was.
// Close codes: 4401 and 4403 mean that the token is no good (any more); everything else is worth another try.

const PROTOCOL = "sprawl.v1.json";
const WAIT_MS_MAX = 10_000;
const FINAL = new Set([4401, 4403]);

export class Sprawl extends EventTarget {
  #socket = null;
  #subscriptions = new Map(); // name -> what to ask for, with the cursor to go on at
  #waiting = new Map(); // ref -> { resolve, reject }
  #refs = 0;
  #wait_ms = 250;
  #ended = false;

  constructor(url, token) {
    super();
    this.url = url;
    this.token = token;
    this.#open();
  }

  // Resolves with the receipts when the records are stored for good.
  publish(address, text) {
    return this.#ask({ op: "publish", address, text });
  }

  // `filter` has MQTT's wildcards: "orders/eu/+", "orders/#". Records come as events "record".
  subscribe(sub, filter, from) {
    this.#subscriptions.set(sub, { op: "subscribe", sub, filter, from });
    return this.#ask(this.#subscriptions.get(sub));
  }

  unsubscribe(sub) {
    this.#subscriptions.delete(sub);
    return this.#ask({ op: "unsubscribe", sub });
  }

  pause(sub) {
    return this.#ask({ op: "pause", sub });
  }

  resume(sub) {
    return this.#ask({ op: "resume", sub });
  }

  close() {
    this.#ended = true;
    this.#socket.close(1000);
  }

  #open() {
    // Pages cannot set headers: the token comes as a second sub-protocol, which the node never echoes.
    this.#socket = new WebSocket(this.url, [PROTOCOL, `bearer.${this.token}`]);
    this.#socket.onmessage = (event) => this.#hear(JSON.parse(event.data));
    this.#socket.onclose = (event) => this.#closed(event);
  }

  #ask(operation) {
    if (this.#socket.readyState !== WebSocket.OPEN) return Promise.reject(new Error("not connected"));
    const ref = ++this.#refs;
    this.#socket.send(JSON.stringify({ ...operation, ref }));
    return new Promise((resolve, reject) => this.#waiting.set(ref, { resolve, reject }));
  }

  #hear(message) {
    const asked = this.#waiting.get(message.ref);
    this.#waiting.delete(message.ref);
    switch (message.op) {
      case "ready":
        this.#wait_ms = 250;
        for (const operation of this.#subscriptions.values()) this.#ask(operation).catch((error) => this.#tell("failure", error));
        this.#tell("state", { state: "open", text: `connected as ${message.principal}` });
        break;
      case "records":
        for (const record of message.records) this.#tell("record", { sub: message.sub, record });
        for (const loss of [...(message.damage ?? []), ...(message.gaps ?? [])]) this.#tell("loss", loss);
        this.#go_on_at(message);
        break;
      case "subscribed":
        this.#go_on_at(message);
        asked?.resolve(message);
        break;
      case "error": {
        const error = new Error(message.problem.detail);
        if (message.sub !== undefined && this.#subscriptions.get(message.sub) !== undefined) this.#subscriptions.delete(message.sub);
        if (asked) asked.reject(error);
        else this.#tell("failure", error);
        break;
      }
      default: // ack, unsubscribed, paused, resumed, pong; going-away says nothing that is not known
        asked?.resolve(message);
    }
  }

  #go_on_at({ sub, cursor }) {
    const operation = this.#subscriptions.get(sub);
    if (operation) operation.from = { cursor };
    this.#tell("cursor", { sub, cursor });
  }

  #closed({ code, reason }) {
    for (const { reject } of this.#waiting.values()) reject(new Error("the connection was lost before the answer came"));
    this.#waiting.clear();
    const final = this.#ended || FINAL.has(code);
    this.#tell("state", { state: "closed", code, text: `closed (${code}${reason ? `: ${reason}` : ""})${final ? "" : ", trying again"}` });
    if (final) return;
    setTimeout(() => this.#ended || this.#open(), this.#wait_ms * (0.5 + Math.random() / 2));
    this.#wait_ms = Math.min(2 * this.#wait_ms, WAIT_MS_MAX);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
