// Throughput in SVG: the stores, one upon the other, and the sparkline of one transfer.

import { rate } from "./text.js";
import { change } from "./table.js";

const COLOURS = 6;
const WIDTH = 600;
const HEIGHT = 120;
const SHORT = 60; // seconds that are shown until there are more

export function svg(name, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  return element;
}

// Points of a line from the right edge to the left, `length` of them over the whole width.
function points(values, width, height, top, length = values.length) {
  const step = width / Math.max(1, length - 1);
  const from = length - values.length;
  return values.map((value, index) => {
    const y = height - 1 - (height - 2) * (top ? value / top : 0);
    return `${((from + index) * step).toFixed(1)} ${y.toFixed(1)}`;
  });
}

export function sparkline(element, rates) {
  element.firstChild.setAttribute("d", rates.length ? `M${points(rates, 80, 20, Math.max(...rates, 1)).join("L")}` : "");
}

// The least of 1, 2 and 5, times a power of ten, that is not below `value`.
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

// Draws `throughput`, a list of {store: rate}, the newest last.
export class Graph {
  constructor(find) {
    this.canvas = find("graph");
    this.legend = find("legend");
    this.top = find("graph-top");
    this.from = find("graph-from");
    this.paths = [];
    this.legend.replaceChildren();
    const lines = [0.25, 0.5, 0.75].map((part) =>
      svg("path", { class: "grid", d: `M0 ${HEIGHT * part}H${WIDTH}` }),
    );
    this.canvas.replaceChildren(...lines, svg("path", { class: "grid", d: `M0 ${HEIGHT - 1}H${WIDTH}` }));
  }

  draw(throughput, longest) {
    const length = throughput.length <= SHORT ? SHORT : longest;
    const stores = [...new Set(throughput.flatMap(Object.keys))].sort();
    const total = throughput.map((now) => Object.values(now).reduce((sum, value) => sum + value, 0));
    const most = Math.max(...total, 0);
    const top = rounded(Math.max(most, 1000));
    while (this.paths.length < stores.length) {
      const path = svg("path", { class: `area c${this.paths.length % COLOURS}` });
      const entry = document.createElement("span");
      entry.className = `c${this.paths.length % COLOURS}`;
      this.paths.push([path, entry]);
      this.canvas.append(path);
      this.legend.append(entry);
    }
    let below = throughput.map(() => 0);
    this.paths.forEach(([path, entry], index) => {
      const store = stores[index];
      entry.hidden = store === undefined;
      const above = below.map((value, at) => value + (throughput[at][store] ?? 0));
      const upper = points(above, WIDTH, HEIGHT, top, length);
      const lower = points(below, WIDTH, HEIGHT, top, length).reverse();
      path.setAttribute("d", store === undefined || !upper.length ? "" : `M${upper.join("L")}L${lower.join("L")}Z`);
      change(entry, "textContent", store === undefined ? "" : `${store} ${rate(throughput.at(-1)?.[store] ?? 0)}`);
      below = above;
    });
    change(this.top, "textContent", `peak ${rate(most)}, scale to ${rate(top)}`);
    change(this.from, "textContent", length === SHORT ? "a minute ago" : `${Math.round(longest / 60)} minutes ago`);
    const said = `Throughput of the last ${length === SHORT ? "minute" : "minutes"}, now ${rate(total.at(-1) ?? 0)}`;
    if (this.canvas.getAttribute("aria-label") !== said) {
      this.canvas.setAttribute("aria-label", said);
    }
  }
}
