// Transfers that ended.

import { mostly } from "./model.js";
import { Table, change, makePill } from "./table.js";
import { moment, rate, size, took } from "./text.js";

const PAGE = 200;
const find = (id) => document.getElementById(id);

export class HistoryView {
  constructor(api, act, nameOf) {
    this.api = api;
    const text = (label, value, name = "") => [label, name, undefined, (cell, item) => change(cell, "textContent", value(item))];
    this.table = new Table(find("history-table"), [
      text("Image", (item) => nameOf(item.image) ?? item.image),
      text("Kind", (item) => `${item.kind}, ${item.store ?? "no store"}`),
      text("Client", (item) => [item.user, item.client ?? "the gateway"].filter(Boolean).join(", ")),
      ["Outcome", "state", makePill, (cell, item) => change(cell.firstChild, "textContent", item.state)],
      text("Bytes", (item) => size(item.bytes), "narrowly"),
      text("Average", (item) => rate(item.rate_avg), "narrowly"),
      text("Ended", (item) => moment(item.ended_at), "narrowly"),
      text("Took", (item) => took(item.duration_s)),
      text("Waited for", (item) => waited(item)),
      text("Why", (item) => item.error ?? "–"),
    ]);
    find("history-refresh").onclick = () => act(() => this.load());
  }

  close() {
    this.table.show([]);
  }

  async load() {
    const { transfers } = await this.api.get(`/transfers/history?limit=${PAGE}`);
    // An id may be used again: the place in the history is what tells two apart.
    this.table.show(transfers.map((item) => [`${item.id} ${item.ended_at}`, item]), (item) => item.state);
    find("history-summary").textContent = `the last ${transfers.length}`;
  }
}

// What it waited for most, if that was a tenth of its time.
function waited(item) {
  const most = mostly(item.wait);
  const ms = most ? item.wait[most.kind] : 0;
  return ms > item.duration_s * 100 ? `${most.kind}, ${took(ms / 1000)}` : "–";
}
