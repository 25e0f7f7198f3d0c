// The view of what moves now.

import { Graph, sparkline, svg } from "./graph.js";
import { SAMPLES, mostly } from "./model.js";
import { Table, button, change, makePill } from "./table.js";
import { duration, rate, size } from "./text.js";

const WAITS = ["client", "store", "limit", "disk"];
const find = (id) => document.getElementById(id);

export class TransfersView {
  // `act(work)` runs work and shows its failure; `nameOf(id)` is an image's name.
  constructor(model, api, act, nameOf) {
    this.model = model;
    this.api = api;
    this.act = act;
    this.nameOf = nameOf;
    this.due = false;
    this.table = new Table(find("transfer-table"), this.columns());
    this.graph = new Graph(find);
    find("transfer-filter").oninput = () => this.refresh();
    find("gateway-limit").onsubmit = (event) => {
      event.preventDefault();
      act(() => this.limitGateway());
    };
    this.timer = setInterval(() => this.refresh(), 1000);
  }

  close() {
    clearInterval(this.timer);
    this.table.show([]);
  }

  columns() {
    return [
      ["Image", "", makeTwo, (cell, item) => this.image(cell, item)],
      ["Kind", "", makeTwo, (cell, item) => updateTwo(cell, item.kind, item.store ?? "")],
      ["Client", "", makeTwo, (cell, item) => updateTwo(cell, item.client ?? "the gateway", item.user ?? "")],
      ["State", "state", makeState, updateState],
      ["Progress", "moved", makeProgress, updateProgress],
      ["Rate", "", makeRate, updateRate],
      ["Left", "", undefined, (cell, item) => change(cell, "textContent", duration(item.eta_s) || "–")],
      ["Waits for", "", makeWaits, updateWaits],
      ["Actions", "actions", (cell, row) => this.makeActions(cell, row), (cell, item) => this.updateActions(cell, item)],
    ];
  }

  // At most once a frame, and only while somebody looks.
  refresh() {
    if (!this.due) {
      this.due = true;
      requestAnimationFrame(() => {
        this.due = false;
        this.show();
      });
    }
  }

  show() {
    const wanted = find("transfer-filter").value.trim().toLowerCase();
    const shown = [...this.model.transfers].filter(([, item]) => this.matches(item, wanted));
    this.table.show(shown, (item) => item.state);
    const all = this.model.transfers.size;
    find("no-transfers").hidden = all > 0;
    find("none-match").hidden = all === 0 || shown.length > 0;
    change(find("total-rate"), "textContent", rate(this.model.rate));
    change(find("total-count"), "textContent", String(all));
    const most = mostly(this.model.waits);
    change(find("total-waiting"), "textContent", most ? `${most.kind} ${Math.round(most.share * 100)} %` : "nothing");
    change(find("live-summary"), "textContent", wanted ? `${shown.length} of ${all}` : "");
    change(find("total-states"), "textContent", this.states());
    this.graph.draw(this.model.throughput, SAMPLES);
  }

  // How many are in another state than most are.
  states() {
    const counts = new Map();
    for (const { state } of this.model.transfers.values()) {
      counts.set(state, (counts.get(state) ?? 0) + 1);
    }
    return ["running", "queued", "paused"].filter((state) => counts.has(state))
      .map((state) => `${counts.get(state)} ${state}`).join(", ");
  }

  matches(item, wanted) {
    const text = [item.image, this.nameOf(item.image), item.client, item.user, item.store, item.kind, item.state, item.id];
    return !wanted || text.join(" ").toLowerCase().includes(wanted);
  }

  image(cell, item) {
    updateTwo(cell, this.nameOf(item.image) ?? item.image, item.image);
  }

  makeActions(cell, row) {
    const path = () => `/transfers/${row.item.id}`;
    const pause = button("Pause", "pause", () =>
      this.act(() => this.api.send("PATCH", path(), { paused: row.item.state !== "paused" })),
    );
    const limit = button("Limit", "limit", () => this.act(() => this.limit(row)));
    const cancel = button("Cancel", "cancel", () => this.act(() => this.api.send("DELETE", path())));
    cell.append(pause, " ", limit, " ", cancel);
  }

  updateActions(cell, item) {
    const [pause, limit, cancel] = cell.querySelectorAll("button");
    const what = `${item.kind} of ${this.nameOf(item.image) ?? item.image}`;
    const verb = item.state === "paused" ? "Resume" : "Pause";
    change(pause, "textContent", verb);
    change(pause, "ariaLabel", `${verb} the ${what}`);
    change(limit, "ariaLabel", `Limit the ${what}`);
    change(cancel, "ariaLabel", `Cancel the ${what}`);
  }

  async limit(row) {
    const dialog = find("limit-dialog");
    const { limit_bytes_per_s: limit, id } = row.item;
    find("limit-rate").value = limit ? limit / 1e6 : "";
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue === "set") {
      const { transfer } = await this.api.send("PATCH", `/transfers/${id}`, { limit_bytes_per_s: entered("limit-rate") });
      Object.assign(this.model.transfers.get(id) ?? {}, { limit_bytes_per_s: transfer.limit_bytes_per_s });
    }
  }

  async limitGateway() {
    const sent = find("gateway-rate").value;
    await this.api.send("PATCH", "/limits", { limit_bytes_per_s: entered("gateway-rate") });
    await this.showGatewayLimit(sent);
  }

  // For admins alone. What is typed meanwhile, so that the field no longer holds `shown`, stays.
  async showGatewayLimit(shown = find("gateway-rate").value) {
    const { limits } = await this.api.get("/limits");
    if (find("gateway-rate").value === shown) {
      find("gateway-rate").value = limits.limit_bytes_per_s ? limits.limit_bytes_per_s / 1e6 : "";
    }
    find("gateway-limit").hidden = false;
  }
}

function entered(id) {
  const text = find(id).value;
  return text === "" ? null : Math.round(Number(text) * 1e6);
}

// A line, and a smaller one below; what is too long for its column is cut, and whole in the title.
function makeTwo(cell) {
  const first = document.createElement("span");
  first.className = "first";
  cell.append(first, document.createElement("small"));
}

function updateTwo(cell, first, second) {
  change(cell.firstChild, "textContent", first);
  change(cell.lastChild, "textContent", second);
  change(cell, "title", [first, second].filter(Boolean).join("\n"));
}

function makeState(cell) {
  makePill(cell);
  cell.append(document.createElement("small"));
}

function updateState(cell, item) {
  const notes = [
    item.position ? `place ${item.position}` : "",
    item.note,
    item.attempt > 1 ? `try ${item.attempt}` : "",
    item.waiters ? `${item.waiters} wait for it` : "",
  ];
  change(cell.firstChild, "textContent", item.state);
  change(cell.lastChild, "textContent", notes.filter(Boolean).join(", "));
}

function makeProgress(cell) {
  const bar = document.createElement("progress");
  bar.ariaLabel = "Progress";
  cell.append(bar, document.createElement("small"));
}

function updateProgress(cell, item) {
  const [bar, text] = cell.children;
  if (item.size) {
    change(bar, "max", item.size);
    // By the attribute: without it the bar has the value 0, too, but moves to and fro.
    setAttribute(bar, "value", String(Math.min(item.bytes, item.size)));
    change(text, "textContent", `${size(item.bytes)} of ${size(item.size)}`);
  } else {
    if (bar.hasAttribute("value")) bar.removeAttribute("value");
    change(text, "textContent", size(item.bytes));
  }
}

function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) {
    element.setAttribute(name, value);
  }
}

function makeRate(cell) {
  const spark = svg("svg", { class: "spark", viewBox: "0 0 80 20", preserveAspectRatio: "none", "aria-hidden": "true" });
  spark.append(svg("path"));
  cell.append(document.createElement("span"), spark, document.createElement("small"));
}

function updateRate(cell, item) {
  const [now, spark, limit] = cell.children;
  change(now, "textContent", rate(item.rate));
  change(limit, "textContent", item.limit_bytes_per_s ? `at most ${rate(item.limit_bytes_per_s)}` : "");
  if (spark.newest !== item.rates || spark.drawn !== item.told) {
    spark.newest = item.rates;
    spark.drawn = item.told;
    sparkline(spark, item.rates);
  }
}

function makeWaits(cell) {
  const bar = document.createElement("div");
  bar.className = "waits";
  bar.ariaHidden = "true";
  WAITS.forEach((kind, index) => {
    const part = document.createElement("i");
    part.className = `w${index}`;
    bar.append(part);
  });
  cell.append(bar, document.createElement("small"));
}

function updateWaits(cell, item) {
  const [bar, text] = cell.children;
  const most = item.state === "running" ? mostly(item.wait) : undefined;
  change(text, "textContent", most ? `${most.kind} ${Math.round(most.share * 100)} %` : "–");
  WAITS.forEach((kind, index) => change(bar.children[index].style, "flexGrow", String(most ? item.wait[kind] : 0)));
}
