// Shows /v1/openapi.json, the document that this node's router is described by. Text goes in as text, never as markup.
"use strict";

const HIDDEN = new Set(["head", "options"]); // they come with every path, and say nothing of their own
const SHOWN_BYTES = 64 * 1024;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// `code` in backticks is all the markup that descriptions have.
function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));
}

function resolved(schema, whole) {
  return schema && schema.$ref ? whole.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

// A schema as one would say it; objects by the names of their members.
function said(schema, whole, depth = 0) {
  if (schema === true || !schema || Object.keys(schema).length === 0) return "any JSON";
  if (schema === false) return "nothing";
  if (schema.$ref) return depth > 2 ? schema.$ref.split("/").pop() : said(resolved(schema, whole), whole, depth);
  if (schema.allOf) return said(schema.allOf[0], whole, depth);
  const choices = schema.anyOf || schema.oneOf;
  if (choices) {
    const texts = choices.filter((one) => one.maxProperties !== 0).map((one) => said(one, whole, depth + 1));
    return [...new Set(texts)].join(" or ");
  }
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of (${said(schema.items, whole, depth + 1)})`;
  if (schema.type === "object" || schema.properties) {
    const required = new Set(schema.required || []);
    const members = Object.entries(schema.properties || {}).map(
      ([name, one]) => `${"  ".repeat(depth + 1)}${name}${required.has(name) ? "" : "?"}: ${said(one, whole, depth + 1)}`,
    );
    if (members.length) return `{\n${members.join("\n")}\n${"  ".repeat(depth)}}`;
    return schema.additionalProperties ? `{name: ${said(schema.additionalProperties, whole, depth + 1)}}` : "object";
  }
  const bounds = [];
  // Beyond 2^53 this language's numbers are not the document's.
  const maximum = schema.maximum > Number.MAX_SAFE_INTEGER ? undefined : schema.maximum;
  if (schema.minimum !== undefined || maximum !== undefined) bounds.push(`${schema.minimum ?? "…"} to ${maximum ?? "…"}`);
  if (schema.contentEncoding) bounds.push(schema.contentEncoding);
  return [schema.type || "text", ...bounds].join(", ");
}

// One row per parameter; the members of an exploded object are parameters of their own.
function parameters(operation) {
  return (operation.parameters || []).flatMap((one) => {
    if (one.in !== "query" || !one.explode) return [{ ...one, note: one.description }];
    return one.schema.anyOf.flatMap((form) => {
      const names = Object.keys(form.properties || {});
      return names.map((name) => ({
        name,
        in: "query",
        schema: form.properties[name],
        note: `${one.description}: ${form.properties[name].description}${names.length > 1 ? ` (${names.join(" and ")} together)` : ""}`,
      }));
    });
  });
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function parameterTable(operation, whole) {
  const rows = parameters(operation).map((one) =>
    make(
      "tr",
      {},
      make("td", {}, make("code", {}, one.name), one.required ? " *" : ""),
      make("td", {}, one.in),
      make("td", {}, said(one.schema, whole)),
      make("td", {}, ...prose(one.note || "")),
    ),
  );
  return rows.length ? [make("h3", {}, "Parameters"), table(["name", "in", "form", "what it is"], rows)] : [];
}

function content(kinds, whole) {
  return Object.entries(kinds || {}).map(([mediaType, one]) =>
    make("details", {}, make("summary", {}, make("code", {}, mediaType)), make("pre", {}, said(one.schema, whole))),
  );
}

function body(operation, whole) {
  const asked = operation.requestBody;
  if (!asked) return [];
  return [make("h3", {}, "Body"), make("p", {}, ...prose(asked.description || "")), ...content(asked.content, whole)];
}

function answers(operation, whole) {
  const rows = Object.entries(operation.responses).map(([status, one]) => {
    const problem = (one.content || {})["application/problem+json"];
    const types = problem ? problem.schema.allOf[1].properties.type.enum : [];
    const more = problem ? types.map((type) => make("code", {}, type.split("/").pop())) : content(one.content, whole);
    const headers = Object.keys(one.headers || {}).filter((name) => name !== "X-Request-Id");
    return make(
      "tr",
      {},
      make("td", {}, make("code", {}, status)),
      make("td", {}, one.description, ...more.flatMap((item) => [" ", item])),
      make("td", {}, ...headers.flatMap((name) => [make("code", {}, name), " "])),
    );
  });
  return [make("h3", {}, "Answers"), table(["status", "what it means", "headers"], rows)];
}

function tryOut(method, path, operation) {
  const form = make("form", { class: "try" });
  // One field for a name, though several forms of a parameter may share it.
  const named = [...new Map(parameters(operation).map((one) => [`${one.in} ${one.name}`, one])).values()];
  const fields = named.map((one) => {
    const input = make("input", { name: one.name, autocomplete: "off", spellcheck: "false" });
    form.append(make("label", {}, `${one.name}${one.required ? " *" : ""} (${one.in})`, input));
    return { ...one, input };
  });
  const kinds = Object.keys((operation.requestBody || {}).content || {});
  const kind = make("select", {}, ...kinds.map((one) => make("option", {}, one)));
  const text = make("textarea", { spellcheck: "false" });
  if (kinds.length) form.append(make("label", {}, "Content-Type", kind), make("label", {}, "body", text));
  const shown = make("pre", { "aria-live": "polite", hidden: "" });
  form.append(make("button", { type: "submit" }, `Send ${method.toUpperCase()}`), shown);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    shown.hidden = false;
    shown.textContent = "…";
    shown.textContent = await send(method, path, fields, kinds.length ? { kind: kind.value, text: text.value } : null);
  });
  return make("details", {}, make("summary", {}, "Try it"), form);
}

async function send(method, path, fields, given) {
  const query = new URLSearchParams();
  const headers = new Headers();
  const token = document.getElementById("token").value.trim();
  if (token) headers.set("Authorization", `Bearer ${token}`);
  for (const field of fields) {
    const value = field.input.value;
    if (field.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(value));
    else if (value && field.in === "query") query.append(field.name, value);
    else if (value) headers.set(field.name, value);
  }
  if (given) headers.set("Content-Type", given.kind);
  const asked = query.size ? `${path}?${query}` : path;
  try {
    const answer = await fetch(asked, { method: method.toUpperCase(), headers, body: given ? given.text : undefined, credentials: "omit" });
    const lines = [...answer.headers].map(([name, value]) => `${name}: ${value}`);
    return `${method.toUpperCase()} ${asked}\n\n${answer.status} ${answer.statusText}\n${lines.join("\n")}\n\n${await beginning(answer)}`;
  } catch (error) {
    return `${method.toUpperCase()} ${asked}\n\n${error}`;
  }
}

// Event streams have no end: the first events are shown, and the stream is left.
async function beginning(answer) {
  if (!answer.body) return "";
  const reader = answer.body.getReader();
  const stream = (answer.headers.get("content-type") || "").startsWith("text/event-stream");
  const late = new Promise((resolve) => setTimeout(() => resolve({ done: true }), stream ? 2000 : 60000));
  const decoder = new TextDecoder();
  let text = "";
  while (text.length < SHOWN_BYTES) {
    const { done, value } = await Promise.race([reader.read(), late]);
    if (done) break;
    text += decoder.decode(value, { stream: true });
  }
  reader.cancel();
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function article(method, path, operation, whole) {
  const summary = make("summary", { "data-summary": operation.summary || "" }, make("span", { class: `method ${method}` }, method.toUpperCase()), make("span", { class: "path" }, path));
  const inside = make("div", { class: "inside" });
  const details = make("details", {}, summary, inside);
  // Filled when it is opened: most never are.
  details.addEventListener("toggle", () => {
    if (!details.open || inside.childElementCount) return;
    const open = operation.security && operation.security.length === 0 ? make("p", { class: "hint" }, "Answered without credentials.") : null;
    const about = operation.description ? make("p", {}, ...prose(operation.description)) : null;
    const parts = [...parameterTable(operation, whole), ...body(operation, whole), ...answers(operation, whole)];
    inside.append(...[about, open].filter((one) => one !== null), ...parts, tryOut(method, path, operation));
  });
  return make("article", { id: operation.operationId, "data-find": `${method} ${path} ${operation.operationId} ${operation.summary}`.toLowerCase() }, details);
}

function show(whole) {
  document.getElementById("version").textContent = `REST interface, version ${whole.info.version}`;
  const link = make("a", { href: "/v1/openapi.json" }, "The OpenAPI document");
  const paragraphs = whole.info.description.split("\n\n").map((text) => make("p", {}, ...prose(text)));
  document.getElementById("lead").replaceChildren(...paragraphs, make("p", {}, link));
  const contents = document.getElementById("contents");
  const operations = document.getElementById("operations");
  for (const tag of whole.tags) {
    const list = make("ul");
    const section = make("section", {}, make("h2", {}, tag.name), make("p", { class: "hint" }, tag.description || ""));
    for (const [path, methods] of Object.entries(whole.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (HIDDEN.has(method) || !operation.tags.includes(tag.name)) continue;
        const link = make("a", { href: `#${operation.operationId}` }, make("span", { class: `method ${method}` }, method.toUpperCase()), operation.summary);
        list.append(make("li", {}, link));
        section.append(article(method, path, operation, whole));
      }
    }
    contents.append(make("h2", {}, tag.name), list);
    operations.append(section);
  }
  document.getElementById("search").addEventListener("input", find);
  window.addEventListener("hashchange", jump);
  jump();
}

function find(event) {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const one of document.querySelectorAll("article")) one.hidden = !words.every((word) => one.dataset.find.includes(word));
}

function jump() {
  const found = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!found || found.tagName !== "ARTICLE") return;
  found.querySelector("details").open = true;
  found.scrollIntoView();
}

document.getElementById("credential").addEventListener("submit", (event) => event.preventDefault());
fetch("/v1/openapi.json", { credentials: "omit" })
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`${answer.status}`))))
  .then(show)
  .catch((error) => {
    document.getElementById("lead").textContent = `The OpenAPI document cannot be read: ${error}`;
  });
