// The catalogue: search, detail, links, and adding an image by dropping its file.

import { Table, button, change } from "./table.js";
import { moment, size } from "./text.js";

const PAGE = 1000;
const find = (id) => document.getElementById(id);

export class Catalogue {
  constructor(api, act) {
    this.api = api;
    this.act = act;
    this.images = new Map();
    this.asked = new Set();
    this.table = new Table(find("image-table"), this.columns());
    find("image-filter").oninput = () => this.show();
    find("image-refresh").onclick = () => act(() => this.load());
    find("add").onsubmit = (event) => {
      event.preventDefault();
      act(() => this.add());
    };
    this.prepareDrop();
  }

  close() {
    this.table.show([]);
  }

  columns() {
    const text = (label, value, name = "") => [label, name, undefined, (cell, item) => change(cell, "textContent", value(item))];
    return [
      ["Name", "", (cell, row) => this.makeName(cell, row), (cell, item) => change(cell.firstChild, "textContent", item.name)],
      text("Architecture", (item) => item.architecture),
      text("Format", (item) => item.format ?? "–"),
      text("Store", (item) => item.store ?? "–"),
      text("Size", (item) => (item.size === null ? "–" : size(item.size)), "narrowly"),
      text("Added", (item) => moment(item.created_at), "narrowly"),
      ["Actions", "actions", (cell, row) => this.makeActions(cell, row), undefined],
    ];
  }

  // The name of an image; one that is not known yet is looked up, once.
  nameOf(id) {
    const known = this.images.get(id)?.name;
    if (known === undefined && !this.asked.has(id)) {
      this.asked.add(id);
      clearTimeout(this.soon);
      this.soon = setTimeout(() => this.load().catch(() => undefined), 300);
    }
    return known;
  }

  async load() {
    const images = new Map();
    for (let target = `/images?limit=${PAGE}&sort=name`; target; ) {
      const page = await this.api.call("GET", target, undefined, { headers: { prefer: "handling=lenient" } });
      const found = (await page.json()).images;
      found.forEach((image) => images.set(image._id, image));
      target = found.length === PAGE ? `/images?limit=${PAGE}&marker=${found.at(-1)._id}&sort=name` : undefined;
    }
    this.images = images;
    this.show();
  }

  show() {
    const wanted = find("image-filter").value.trim().toLowerCase();
    const matching = [...this.images].filter(
      ([id, image]) =>
        !wanted ||
        [id, image.name, image.architecture, image.format, image.store, image.type].join(" ").toLowerCase().includes(wanted),
    );
    this.table.show(matching);
    find("image-summary").textContent = `${matching.length} of ${this.images.size} images`;
  }

  makeName(cell, row) {
    cell.append(button("", "link", () => this.act(() => this.detail(row.item))));
  }

  makeActions(cell, row) {
    cell.append(
      button("Details", "details", () => this.act(() => this.detail(row.item))),
      " ",
      button("Delete", "delete", () => this.act(() => this.remove(row.item))),
    );
  }

  async detail(image) {
    const response = await this.api.call("HEAD", `/images/${image._id}`);
    const fields = [];
    for (const [name, value] of response.headers) {
      if (name.startsWith("x-image-meta-")) {
        const term = document.createElement("dt");
        const text = document.createElement("dd");
        term.textContent = name.slice("x-image-meta-".length);
        text.textContent = new TextDecoder().decode(Uint8Array.from(value, (c) => c.charCodeAt(0)));
        fields.push(term, text);
      }
    }
    find("image-title").textContent = image.name;
    find("image-fields").replaceChildren(...fields);
    find("image-link").textContent = "";
    find("image-link-make").onclick = () => this.act(() => this.link(image));
    find("image-dialog").showModal();
  }

  async link(image) {
    const { link } = await this.api.send("POST", `/images/${image._id}/links`, {});
    const anchor = document.createElement("a");
    anchor.href = link.uri;
    anchor.textContent = link.uri;
    find("image-link").replaceChildren(`Good until ${moment(link.expires_at)}: `, anchor);
  }

  async remove(image) {
    if (confirm(`Delete the image ${image.name}, record and bytes?`)) {
      await this.api.send("DELETE", `/images/${image._id}`);
      await this.load();
    }
  }

  // --- adding ---

  prepareDrop() {
    const drop = find("drop");
    drop.ondragover = (event) => {
      event.preventDefault();
      drop.classList.add("over");
    };
    drop.ondragleave = () => drop.classList.remove("over");
    drop.ondrop = (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      find("add-file").files = event.dataTransfer.files;
      this.suggest();
    };
    find("add-file").onchange = () => this.suggest();
  }

  // What a file's name says of the image.
  suggest() {
    const [file] = find("add-file").files;
    if (!file) return;
    const [, stem, ending] = /^(.*?)(?:\.([^.]*))?$/.exec(file.name);
    find("add-name").value ||= stem;
    const format = find("add-format");
    const known = ending?.toLowerCase() === "img" ? "raw" : ending?.toLowerCase();
    if ([...format.options].some((option) => option.value === known)) {
      format.value = known;
    }
  }

  async add() {
    const [file] = find("add-file").files;
    const fields = {};
    for (const name of ["name", "architecture", "format", "access"]) {
      if (find(`add-${name}`).value) fields[name] = find(`add-${name}`).value;
    }
    if (!file) throw new Error("Choose a file first");
    const bar = find("add-progress");
    bar.max = file.size || 1;
    bar.hidden = false;
    try {
      find("add-state").textContent = `Uploading ${file.name}`;
      const image = await this.api.upload(fields, file, (sent) => (bar.value = sent));
      find("add-state").textContent = `Added ${image.name}, ${size(image.size)}`;
      find("add").reset();
    } catch (error) {
      find("add-state").textContent = "Not added";
      throw error;
    } finally {
      bar.hidden = true;
      bar.value = 0;
    }
    await this.load();
  }
}
