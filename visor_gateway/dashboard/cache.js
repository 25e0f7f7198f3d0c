// The cache, for admins: what is in it, filling it ahead, removing from it.

import { Table, button, change } from "./table.js";
import { moment, size } from "./text.js";

const find = (id) => document.getElementById(id);

export class CacheView {
  constructor(api, act, nameOf) {
    this.api = api;
    this.act = act;
    const text = (label, value) => [label, "", undefined, (cell, item) => change(cell, "textContent", value(item))];
    this.table = new Table(find("cache-table"), [
      text("Image", (item) => nameOf(item.image) ?? item.image),
      text("Size", (item) => size(item.size)),
      text("SHA-256", (item) => item.sha256.slice(0, 16)),
      text("Last used", (item) => moment(item.used_at)),
      ["Actions", "actions", (cell, row) => this.makeActions(cell, row), undefined],
    ]);
    find("cache-refresh").onclick = () => act(() => this.load());
    find("cache-purge").onclick = () => act(() => this.purge());
    find("warm").onsubmit = (event) => {
      event.preventDefault();
      act(() => this.warm());
    };
  }

  close() {
    this.table.show([]);
  }

  makeActions(cell, row) {
    const remove = button("Remove", "remove", () =>
      this.act(async () => {
        await this.api.send("DELETE", `/cache/${row.item.image}`);
        await this.load();
      }),
    );
    remove.ariaLabel = `Remove ${row.item.image} from the cache`;
    cell.append(remove);
  }

  async load() {
    this.show((await this.api.get("/cache")).cache);
  }

  show(cache) {
    this.table.show(cache.entries.toReversed().map((item) => [`${item.image} ${item.sha256}`, item]));
    this.table.empty.hidden ||= !cache.max_bytes;
    find("cache-summary").textContent = cache.max_bytes
      ? `${size(cache.bytes)} of ${size(cache.max_bytes)}, ${cache.entries.length} images`
      : "The cache is off: see [cache] max_bytes in the configuration.";
  }

  async warm() {
    this.show((await this.api.send("POST", "/cache", { image: find("warm-image").value })).cache);
    find("warm").reset();
  }

  async purge() {
    if (confirm("Remove every image from the cache?")) {
      await this.api.send("DELETE", "/cache");
      await this.load();
    }
  }
}
