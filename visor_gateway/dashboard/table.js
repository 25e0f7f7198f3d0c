// Rows that are made once and then changed in place: what did not change is not touched, so large tables stay smooth.

export class Table {
  // `columns`: [label, class or "", make(cell, item), update(cell, item)], where make and update may be left out.
  constructor(table, columns) {
    this.body = table.tBodies[0];
    this.columns = columns;
    this.rows = new Map();
    this.empty = document.querySelector(`[data-empty="${table.id}"]`); // what is shown in place of no rows
  }

  show(items, state) {
    const seen = new Set();
    let before = this.body.firstElementChild;
    for (const [id, item] of items) {
      seen.add(id);
      let row = this.rows.get(id);
      if (!row) {
        row = this.make(id, item);
        this.body.insertBefore(row, before);
      } else if (row !== before) {
        this.body.insertBefore(row, before);
      } else {
        before = before.nextElementSibling;
      }
      row.item = item;
      if (state) {
        change(row.dataset, "state", state(item));
      }
      this.columns.forEach(([, , , update], index) => update?.(row.cells[index], item));
    }
    for (const [id, row] of this.rows) {
      if (!seen.has(id)) {
        row.remove();
        this.rows.delete(id);
      }
    }
    if (this.empty) {
      this.empty.hidden = seen.size > 0;
    }
  }

  make(id, item) {
    const row = document.createElement("tr");
    row.item = item;
    row.dataset.id = id;
    for (const [label, name, make] of this.columns) {
      const cell = row.insertCell();
      cell.dataset.label = label;
      cell.className = name;
      make?.(cell, row);
    }
    this.rows.set(id, row);
    return row;
  }
}

export function change(target, key, value) {
  if (target[key] !== value) {
    target[key] = value;
  }
}

export function makePill(cell) {
  const pill = document.createElement("span");
  pill.className = "pill";
  cell.append(pill);
}

export function button(label, name, pressed) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.className = name;
  element.addEventListener("click", pressed);
  return element;
}
